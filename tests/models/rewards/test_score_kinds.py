"""Which number of a classifier is the reward: inferred where there is no choice, named where there is."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reward_rows import ROWS, sequences
from transformers import PreTrainedConfig

from models import ClassifierReward, load_reward_model
from models.rewards.score_kinds import Score, find_score
from models.tiny import save_tiny, tiny_gpt2_classifier, tiny_tokenizer

MOODS = ["joy", "anger", "fear"]


def described(*names: str, problem_type: str | None = None) -> PreTrainedConfig:
    return PreTrainedConfig.from_dict({"id2label": dict(enumerate(names)), "problem_type": problem_type})


def found(config: PreTrainedConfig, **asked: Any) -> Score:
    """Without the type checker of these tests in front."""
    return inspect.unwrap(find_score)("folder", config, asked.get("score"), asked.get("label"))


def saved(folder: Path) -> str:
    """A classifier of three moods."""
    save_tiny(folder, head="classifier", num_labels=3)
    named = {"id2label": dict(enumerate(MOODS)), "label2id": {name: index for index, name in enumerate(MOODS)}}
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    return str(folder)


@pytest.mark.parametrize(
    ("config", "asked", "score"),
    [
        (described("only"), {}, Score(kind="single_logit")),
        (described("only", problem_type="regression"), {}, Score(kind="single_logit")),
        (described("NEGATIVE", "POSITIVE"), {}, Score(kind="logit_difference")),
        (described("POSITIVE", "NEGATIVE"), {"label": "POSITIVE"}, Score(kind="log_odds", label=0)),
        (described(*MOODS), {"label": "joy"}, Score(kind="log_odds", label=0)),
        (described(*MOODS), {"label": 2}, Score(kind="log_odds", label=2)),
        (described(*MOODS), {"label": "fear", "score": "label_logit"}, Score(kind="label_logit", label=2)),
        (
            described(*MOODS, problem_type="multi_label_classification"),
            {"label": "fear"},
            Score(kind="label_logit", label=2),
        ),
    ],
)
def test_inferred_where_there_is_no_choice(config: PreTrainedConfig, asked: dict[str, Any], score: Score) -> None:
    assert found(config, **asked) == score


@pytest.mark.parametrize(
    ("config", "asked", "message"),
    [
        (
            described("LABEL_0", "LABEL_1"),
            {},
            r"^folder has 2 labels, and nothing says which is the reward\. Use score='logit_difference' \(label 1 "
            r"minus label 0\), or label, one of 'LABEL_0' \(0\), 'LABEL_1' \(1\), for score='log_odds' .* or "
            r"score='label_logit' \(its logit alone\)$",
        ),
        (described("positive", "negative"), {}, "nothing says which is the reward"),
        (described(*MOODS), {}, r"3 labels, .* Use label, one of 'joy' \(0\), 'anger' \(1\), 'fear' \(2\), for"),
        (described(*map(str, range(11))), {}, r"'7' \(7\) and 3 more"),
        (
            described(*MOODS, problem_type="regression"),
            {},
            "nothing says which is the reward. Use score='label_logit' and label, one of 'joy'",
        ),
        (described(*MOODS, problem_type="regression"), {"score": "log_odds", "label": 0}, "are separate answers"),
        (described(*MOODS), {"label": "angr"}, r"no label 'angr'; did you mean 'anger'\? It has 'joy' \(0\), 'ang"),
        (described(*MOODS), {"label": 3}, r"no label 3\. It has"),
        (described(*MOODS), {"label": True}, r"no label True\. It has"),
        (described("a", "a", "b"), {"label": "a"}, "has 2 label 'a'"),
        (described(*MOODS), {"score": "log_odds"}, "score='log_odds' needs the label that it is of. Use label, one of"),
        (described("only"), {"label": "only"}, "score='single_logit' is of no single label, but label is 'only'"),
        (described("only"), {"label": 0, "score": "log_odds"}, "1 label.* needs two or more. Use score='single_logit'"),
        (described("a", "b"), {"score": "logit_difference", "label": "b"}, "but label is 'b'"),
        (
            described(*MOODS),
            {"score": "log_odd", "label": 0},
            r"one of single_logit, .*, got 'log_odd'; did you mean 'log_odds'\?",
        ),
    ],
)
def test_a_choice_is_named_and_a_wrong_one_refused(
    config: PreTrainedConfig, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        found(config, **asked)


def test_log_odds_are_those_of_the_probabilities() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    share = logits.softmax(1)[:, 1]
    torch.testing.assert_close(Score(kind="log_odds", label=1).of(logits), (share / (1 - share)).log())
    assert torch.equal(Score(kind="label_logit", label=1).of(logits), logits[:, 1])


def test_log_odds_of_two_labels_are_the_difference_of_their_logits() -> None:
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    difference = Score(kind="logit_difference").of(logits)
    assert torch.equal(Score(kind="log_odds", label=1).of(logits), difference)
    assert torch.equal(Score(kind="log_odds", label=0).of(logits), -difference)


def test_a_folder_of_several_labels_is_read_by_name(tmp_path: Path) -> None:
    folder, batch = saved(tmp_path), sequences(ROWS)
    odds, alone = load_reward_model(folder, label="anger"), load_reward_model(folder, label=1, score="label_logit")
    network = odds.model.eval()
    with torch.no_grad():
        hidden = [network.base_model(input_ids=torch.tensor([p + r])).last_hidden_state[:, -1] for p, r in ROWS]
        logits = network.score(torch.cat(hidden))
    share = logits.softmax(1)[:, 1]
    torch.testing.assert_close(odds.score(batch, frozenset()).scores, (share / (1 - share)).log(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.score(batch, frozenset()).scores, logits[:, 1], atol=1e-4, rtol=0)
    assert (odds.identity["score"], alone.identity["score"]) == ("log_odds of label 1", "label_logit of label 1")


def test_the_choice_is_asked_for_before_the_weights_are_read(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (tmp_path / "model.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match=f"^{tmp_path} has 3 labels, and nothing says which is the reward"):
        load_reward_model(folder)
    with pytest.raises(ValueError, match="did you mean 'anger'"):
        load_reward_model(folder, label="angr")


def test_a_head_of_one_label_needs_no_word(tmp_path: Path) -> None:
    loaded = load_reward_model(save_tiny(tmp_path, head="classifier"))
    built = ClassifierReward(tiny_gpt2_classifier(), tiny_tokenizer())
    assert loaded.identity["score"] == built.identity["score"] == "single_logit"


def test_an_unknown_dtype_names_the_nearest(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, head="classifier")
    with pytest.raises(ValueError, match="got 'float_16'; did you mean 'float16'"):
        inspect.unwrap(load_reward_model)(folder, dtype="float_16")
