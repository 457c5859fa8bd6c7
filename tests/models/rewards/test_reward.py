"""Reward models: which token is read, what padding may change, and what is refused."""

import json
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from reward_rows import ROWS, MambaClassifier, ReadRow, sequences
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2ForSequenceClassification,
    MambaConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from models.rewards.classifier_reward import ClassifierReward
from models.rewards.loading import load_reward_model
from models.tiny import EOS_ID, gpt2_config, save_tiny, tiny_gpt2_classifier, tiny_llama_classifier, tiny_tokenizer
from rlhf_core.evidence import EvidenceRequest, FullKL
from rlhf_core.types import RewardModel, Sequences, ValidatesPrompts

VOCAB = 32
BUILD = {"gpt2": tiny_gpt2_classifier, "llama": tiny_llama_classifier}


def reward(family: str = "gpt2", *, labels: int = 1, **settings: Any) -> ClassifierReward:
    model = BUILD[family](vocab_size=VOCAB, num_labels=labels, **settings)
    kind = "single_logit" if labels == 1 else "logit_difference"
    return ClassifierReward(model, tiny_tokenizer(vocab_size=VOCAB), score=kind)


def scores(model: ClassifierReward, batch: Sequences) -> Tensor:
    return model.score(batch, frozenset()).scores


@torch.no_grad()
def logits_of_last(model: ClassifierReward, row: list[int]) -> Tensor:
    """Head on the last hidden state of one row without padding."""
    hidden = model.model.base_model(input_ids=torch.tensor([row])).last_hidden_state
    return model.model.score(hidden)[0, -1]


@pytest.mark.parametrize("family", BUILD)
def test_agrees_with_transformers_where_its_pooling_is_right(family: str) -> None:
    pad = VOCAB - 1
    model = reward(family, pad_id=pad)
    whole = [p + r for p, r in ROWS]
    width = max(map(len, whole))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in whole])
    with torch.no_grad():
        theirs = model.model(input_ids=ids, attention_mask=(ids != pad).long()).logits[:, 0]
    ours = scores(model, sequences(ROWS))
    assert (ours - theirs).abs().max() < 1e-5
    assert ours.std() > 0.05


@pytest.mark.parametrize("family", BUILD)
def test_reads_eos_when_it_is_the_pad_token_too(family: str) -> None:
    model = reward(family, pad_id=EOS_ID)
    ours = scores(model, sequences(ROWS, pad=EOS_ID))
    for row, (prompt, response) in enumerate(ROWS):
        assert torch.allclose(ours[row], logits_of_last(model, prompt + response)[0], atol=1e-5)
    with torch.no_grad():
        theirs = model.model(input_ids=torch.tensor([ROWS[0][0] + ROWS[0][1]])).logits[0, 0]
    assert (theirs - ours[0]).abs() > 1e-3, "transformers reads the token before EOS here"


@pytest.mark.parametrize("family", BUILD)
@pytest.mark.parametrize("pad", [EOS_ID, 0, VOCAB - 1])
def test_score_and_evidence_do_not_depend_on_batch_padding_or_pad_id(family: str, pad: int) -> None:
    model = reward(family)
    needs = frozenset({ReadRow(), ReadRow(layer=0)})
    batch = sequences(ROWS)
    together = model.score(batch, needs)
    padded = model.score(sequences(ROWS, pad=pad, extra=3), needs)
    model.micro_batch_tokens = 1
    one_by_one = model.score(batch, needs)
    for other in (padded, one_by_one):
        assert (other.scores - together.scores).abs().max() < 1e-5
        for request in needs:
            width = batch.response_ids.shape[1]
            assert (other.evidence[request][:, :width] - together.evidence[request]).abs().max() < 1e-5
            assert (other.evidence[request][:, width:] == 0).all()
    for row, pair in enumerate(ROWS):
        assert (scores(model, sequences([pair]))[0] - together.scores[row]).abs() < 1e-5


@pytest.mark.parametrize("family", BUILD)
def test_evidence_is_the_eager_row_at_the_token_the_score_is_read_from(family: str) -> None:
    model = reward(family)
    batch = sequences(ROWS)
    scored = model.score(batch, frozenset({ReadRow(), ReadRow(layer=0)}))
    untapped = BUILD[family](vocab_size=VOCAB)
    untapped.set_attn_implementation("eager")
    for row, (prompt, response) in enumerate(ROWS):
        with torch.no_grad():
            maps = untapped.base_model(input_ids=torch.tensor([prompt + response]), output_attentions=True).attentions
        for layer in (0, -1):
            wanted = maps[layer][0, :, -1, len(prompt) :].mean(0)
            found = scored.evidence[ReadRow(layer=layer)][row]
            assert (found[: len(response)] - wanted).abs().max() < 1e-5
            assert (found[len(response) :] == 0).all()
    assert torch.equal(scored.scores, scores(model, batch))


def test_logit_difference_is_positive_minus_negative() -> None:
    model = reward(labels=2)
    ours = scores(model, sequences(ROWS))
    for row, (prompt, response) in enumerate(ROWS):
        negative, positive = logits_of_last(model, prompt + response).tolist()
        assert ours[row].item() == pytest.approx(positive - negative, abs=1e-5)


def test_scoring_twice_gives_equal_bits_and_no_gradient() -> None:
    model = BUILD["llama"](vocab_size=VOCAB, dropout=0.5).train()
    judge = ClassifierReward(model, tiny_tokenizer(vocab_size=VOCAB), score="single_logit")
    first, second = scores(judge, sequences(ROWS)), scores(judge, sequences(ROWS))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert first.dtype == torch.float32


def test_whole_rows_score_like_prompt_and_response() -> None:
    model = reward()
    split = scores(model, sequences(ROWS))
    assert torch.allclose(model.score_ids([p + r for p, r in ROWS]), split, atol=1e-6)
    assert model.score_ids([]).shape == (0,)
    with pytest.raises(ValueError, match="row 1 has 1 tokens"):
        model.score_ids([[3, 4], [3]])


def test_satisfies_the_protocol() -> None:
    judge: RewardModel = reward()
    assert judge.provides(ReadRow(layer=-2))


def test_says_why_a_request_cannot_be_answered() -> None:
    model = reward()
    wrong: dict[EvidenceRequest, str] = {
        ReadRow(layer=2): "attention layers 0 to 1, not 2",
        ReadRow(layer=-3): "attention layers 0 to 1",
        ReadRow(source="policy"): "asked of the policy",
        FullKL(source="reward"): "AttentionTap, HiddenTap and Experiment requests, not FullKL",
    }
    for request, reason in wrong.items():
        assert not model.provides(request)
        assert reason in model.why_not(request)
        with pytest.raises(ValueError, match=reason):
            model.score(sequences(ROWS), frozenset({request}))


def test_a_model_without_attention_scores_but_gives_no_rows() -> None:
    config = MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4, num_labels=1)
    torch.manual_seed(0)
    model = ClassifierReward(MambaClassifier(config), tiny_tokenizer(vocab_size=VOCAB), score="single_logit")
    ours = scores(model, sequences(ROWS, pad=7))
    for row, (prompt, response) in enumerate(ROWS):
        assert torch.allclose(ours[row], logits_of_last(model, prompt + response)[0], atol=1e-5)
    assert not model.provides(ReadRow())
    assert "MambaClassifier: no way to read its attention weights" in model.why_not(ReadRow())
    assert torch.equal(scores(model, sequences(ROWS, pad=7)), ours)


ENCODER = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
    "pad_token_id": 1,
    "num_labels": 1,
    "initializer_range": 0.3,
}


@pytest.mark.parametrize(
    ("build", "limit"),
    [
        (lambda: BertForSequenceClassification(BertConfig(**ENCODER)), 20),
        (lambda: RobertaForSequenceClassification(RobertaConfig(**ENCODER)), 18),
    ],
    ids=["bert", "roberta"],
)
def test_encoders_are_read_at_cls(build: Any, limit: int) -> None:
    torch.manual_seed(0)
    network = build().eval()
    tokenizer = tiny_tokenizer(vocab_size=VOCAB)
    with pytest.raises(ValueError, match="no cls token"):
        ClassifierReward(network, tokenizer, score="single_logit")
    tokenizer.cls_token = "w4"
    model = ClassifierReward(network, tokenizer, score="single_logit")
    rows = [([4, 5], [6, 7, 8]), ([4], [9])]
    scored = model.score(sequences(rows, extra=2), frozenset({ReadRow()}))
    network.set_attn_implementation("eager")
    for row, (prompt, response) in enumerate(rows):
        with torch.no_grad():
            theirs = network(input_ids=torch.tensor([prompt + response]), output_attentions=True)
        assert torch.allclose(scored.scores[row], theirs.logits[0, 0], atol=1e-5)
        wanted = theirs.attentions[-1][0, :, 0, len(prompt) :].mean(0)
        assert torch.allclose(scored.evidence[ReadRow()][row, : len(response)], wanted, atol=1e-5)
    model.validate([[4], [4, 5]], limit - 2)
    with pytest.raises(
        ValueError, match=f"row 0: 2 prompt .* exceed the context {limit} .*; row 1 does not start with 4"
    ):
        model.validate([[4, 5], [5]], limit - 1)
    with pytest.raises(ValueError, match="row 1 starts with token 5"):
        scores(model, sequences([([4], [9]), ([5], [9])]))
    scores(model, sequences([([4], [9] * (limit - 1))]))
    with pytest.raises(ValueError, match=f"has {limit + 1} tokens.* reads at most {limit}"):
        scores(model, sequences([([4], [9] * limit)]))


def test_rows_that_cannot_be_read_are_refused() -> None:
    model = reward("llama", context=8)
    with pytest.raises(ValueError, match=r"row 1 has 9 tokens.*reads at most 8"):
        scores(model, sequences([([3], [4]), ([3] * 4, [4] * 5)]))
    with pytest.raises(ValueError, match=r"row 0 holds token id 32 at position 1; .*ids 0 to 31"):
        scores(model, sequences([([3], [VOCAB])]))
    with pytest.raises(ValueError, match="token id -1"):
        scores(model, sequences([([-1], [3])]))
    scores(model, sequences([([3] * 4, [4] * 4), ([5], [6])], pad=VOCAB + 100))  # what stands on padding is not read


def test_prompts_that_could_not_be_scored_are_all_listed_in_advance() -> None:
    model = reward("llama", context=8)
    assert isinstance(model, ValidatesPrompts)
    model.validate([[3] * 4, [5]], 4)
    with pytest.raises(
        ValueError,
        match=r"LlamaForSequenceClassification cannot score: row 0: 5 prompt \+ 4 response tokens exceed the context "
        r"8 .*; row 2 is empty.*; row 3 holds ids \[32\] outside the vocabulary of 32$",
    ):
        model.validate([[3] * 5, [5], [], [4, VOCAB]], 4)


def test_labels_must_fit_the_kind_of_score() -> None:
    tokenizer = tiny_tokenizer(vocab_size=VOCAB)
    with pytest.raises(ValueError, match=r"2 labels; .*needs 1.*Use score='logit_difference'"):
        ClassifierReward(tiny_gpt2_classifier(num_labels=2), tokenizer, score="single_logit")
    with pytest.raises(ValueError, match=r"1 label; .*needs 2.*Use score='single_logit'"):
        ClassifierReward(tiny_gpt2_classifier(num_labels=1), tokenizer, score="logit_difference")
    with pytest.raises(ValueError, match=r"3 labels; .*needs 1. Use label, one of 'LABEL_0' \(0\)"):
        ClassifierReward(tiny_gpt2_classifier(num_labels=3), tokenizer, score="single_logit")
    with pytest.raises(ValueError, match="micro_batch_tokens must be at least 1"):
        ClassifierReward(tiny_gpt2_classifier(), tokenizer, score="single_logit", micro_batch_tokens=0)


class Scaled(GPT2ForSequenceClassification):
    """Does something to its logits that the head alone does not."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output


def test_a_head_that_is_not_the_whole_story_is_refused() -> None:
    model = Scaled(gpt2_config(vocab_size=VOCAB))
    with pytest.raises(ValueError, match=r"Scaled: its head.*differs from its own forward pass by 5\.0e-01"):
        ClassifierReward(model, tiny_tokenizer(vocab_size=VOCAB), score="single_logit")


@pytest.mark.parametrize("family", BUILD)
def test_loads_a_folder(family: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, family, head="classifier", vocab_size=VOCAB)
    loaded = load_reward_model(folder, score="single_logit")
    found, built = scores(loaded, sequences(ROWS)), scores(reward(family), sequences(ROWS))
    torch.testing.assert_close(found, built, atol=1e-5, rtol=0)  # GPT-2's activation is fused where it is loaded
    assert loaded.vocab_size == VOCAB
    assert loaded.tokenizer.eos_token_id == EOS_ID
    assert not loaded.model.training
    half = load_reward_model(folder, score="single_logit", dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert half.provides(ReadRow())


def test_a_folder_without_a_head_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "lm", "gpt2", head="lm", vocab_size=VOCAB)
    headless = save_tiny(tmp_path / "headless", "gpt2", head="classifier", vocab_size=VOCAB)
    file = tmp_path / "headless" / "model.safetensors"
    save_file({k: w for k, w in load_file(file).items() if k != "score.weight"}, file, metadata={"format": "pt"})
    for kind in ("single_logit", "logit_difference"):
        with pytest.raises(ValueError, match="is a causal language model .* not a sequence classifier"):
            load_reward_model(folder, score=kind)
    with pytest.raises(ValueError, match=r"no weights for score\.weight"):
        load_reward_model(headless, score="single_logit")


def test_dropped_weights_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "llama", head="classifier", vocab_size=VOCAB)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"lm_head.weight": torch.zeros(VOCAB, 32)}, file, metadata={"format": "pt"})
    load_reward_model(folder, score="single_logit")  # another head takes no part in the score
    for name in ("score.bias", "model.layers.0.self_attn.q_proj.bias"):
        save_file(weights | {name: torch.ones(1)}, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            load_reward_model(folder, score="single_logit")


@pytest.mark.parametrize("revision", [None, "main", "abc123"])
def test_remote_code_needs_a_commit(revision: str | None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="40 hex digits of a commit"):
        load_reward_model(str(tmp_path), score="single_logit", trust_remote_code=True, revision=revision)


def test_remote_code_is_off_by_default(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "gpt2", head="classifier", vocab_size=VOCAB)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_reward_model(folder, score="single_logit")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:bitsandbytes.*")
@pytest.mark.filterwarnings("ignore::FutureWarning:bitsandbytes.*")
def test_four_bit_llama_on_the_cpu(tmp_path: Path) -> None:
    settings = {"vocab_size": VOCAB, "hidden_size": 64, "std": 0.05}
    folder = save_tiny(tmp_path, "llama", head="classifier", **settings)
    full = load_reward_model(folder, score="single_logit")
    model = load_reward_model(folder, score="single_logit", four_bit=True)
    layer = model.model.base_model.layers[0]
    assert isinstance(layer.self_attn.q_proj, bitsandbytes.nn.Linear4bit)
    assert type(model.model.score) is torch.nn.Linear
    assert torch.equal(model.model.score.weight, full.model.score.weight)
    scored = model.score(sequences(ROWS), frozenset({ReadRow()}))
    exact = full.score(sequences(ROWS), frozenset({ReadRow()}))
    assert 0 < (scored.scores - exact.scores).abs().max() < 0.3 * exact.scores.abs().max()
    assert (scored.evidence[ReadRow()] - exact.evidence[ReadRow()]).abs().max() < 0.05
    assert torch.equal(scores(model, sequences(ROWS)), scored.scores)
