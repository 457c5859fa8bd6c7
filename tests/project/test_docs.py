"""What docs/reliability.md says holds a line exists; docs/methods.md has every method, with what it declares, and the
rewards that it works with."""

import dataclasses
import re
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification

from models import ClassifierReward, RetokenisedReward, Telling, load_policy, load_reward_model, save_tiny
from models.tiny import tiny_tokenizer
from redistributors import REDISTRIBUTORS, LeaveOneOut, OwnRewards, Position, PotentialProjection, Segment, Shapley
from rlhf_core import Experience, PPOConfig, Rollout, Sequences, SpanReward, TextReward
from rlhf_core.checks import why_not_provided
from rlhf_core.names import OTHER_WORDS

ROOT = Path(__file__).resolve().parents[2]
RELIABILITY = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")


def test_every_named_test_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", RELIABILITY)
    assert len(named) == RELIABILITY.count("::")
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).is_file()
        or not re.search(rf"^def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE)
    ]
    assert not missing


def test_every_silent_bug_is_ticked():
    _, ticked = RELIABILITY.split("## Silent bugs")
    rows = [line.split(" | ") for line in ticked.splitlines() if line.startswith("| ")]
    open_rows = [row[0] for row in rows if row[1].strip("| ") != "tested by" and "::" not in row[1]]
    assert len(rows) > 80
    assert not open_rows


METHODS = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip(" `"): [cell.strip() for cell in cells[1:]]
    for line in METHODS.split("## What is declared")[0].splitlines()
    if line.startswith("| `") and len(cells := re.split(r"(?<!\\)\|", line.strip("| "))) == 7
}


@pytest.mark.parametrize("name", REDISTRIBUTORS)
def test_the_page_of_methods_says_what_each_declares(name):
    method = REDISTRIBUTORS[name]()
    _, _, sums_to, causal, shaping, _ = ROWS[name]
    assert causal.startswith("yes") == method.causal
    assert shaping.startswith("yes") == getattr(method, "shaping", False)
    assert sums_to.startswith(("the score", "what the inner")) == method.conserving


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("models") / "policy", "llama")
    return load_policy(folder, auxiliaries={"dpo": folder})


def an_encoder():
    """A BERT that reads its score at [CLS]."""
    tokenizer = tiny_tokenizer(words=[f"w{i}" for i in range(2, 31)], padding="own")
    tokenizer.cls_token = "w2"
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=32, num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes)
    return ClassifierReward(BertForSequenceClassification(config).eval(), tokenizer)


@pytest.fixture(scope="module")
def rewards(policy, tmp_path_factory):
    """A reward of every kind that the table of docs/methods.md has a column for."""
    folder = tmp_path_factory.mktemp("models")
    decoder = load_reward_model(save_tiny(folder / "reward", "gpt2", head="classifier"))
    other = load_reward_model(save_tiny(folder / "other", "gpt2", head="classifier", words=["w3", "w2"]))
    return {
        "function": TextReward(lambda prompts, responses: [0.0] * len(responses), policy.decode),
        "classifier": decoder,
        "encoder": an_encoder(),
        "another tokenizer": RetokenisedReward.of(other, policy, Telling(add_special_tokens=True)),
        "spans": SpanReward(lambda prompts, responses: [[] for _ in responses], policy.decode),
    }


def works(method, reward, policy):
    """What the models themselves say."""
    return not any(why_not_provided(one, reward if one.source == "reward" else policy) for one in method.needs)


def test_the_table_of_rewards_says_what_the_models_say(policy, rewards):
    _, table = METHODS.split("## Which methods work with which reward")
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    header, *said = [row for row in rows if len(row) == 6 and not row[0].startswith("---")]
    assert header[1:] == list(rewards)
    methods = {name: make() for name, make in REDISTRIBUTORS.items()} | {"OwnRewards": OwnRewards()}
    found = [
        [name, *("yes" if works(method, reward, policy) else "no" for reward in rewards.values())]
        for name, method in methods.items()
    ]
    assert sorted(found) == sorted(row for row in said if row[0] in methods)


def test_what_is_said_below_that_table_is_so(policy, rewards):
    function = rewards["function"]
    assert works(Segment(inner=LeaveOneOut()), function, policy)
    assert works(PotentialProjection(inner=LeaveOneOut(), features=(Position(),)), function, policy)
    assert not works(LeaveOneOut(absent="replace"), function, policy)
    assert not works(Shapley(absent="replace"), function, policy)
    assert works(LeaveOneOut(absent="replace"), rewards["classifier"], policy)


def test_the_tutorial_lists_the_fields_of_what_a_method_reads():
    page = (ROOT / "docs/tutorial/2_first_method.md").read_text(encoding="utf-8")
    for kind in (Rollout, Sequences, Experience):
        _, table = page.split(f"\n| `{kind.__name__}` | shape | meaning |\n|---|---|---|\n")
        rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table.split("\n\n")[0], re.MULTILINE))
        assert list(rows) == [one.name for one in dataclasses.fields(kind)]
        axes = {one.name: getattr(one.type, "dim_str", None) for one in dataclasses.fields(kind)}
        assert {name: axes[name] for name in rows if axes[name]} == {
            name: shape.strip("(),").replace(",", "") for name, shape in rows.items() if shape.startswith("(")
        }


MIGRATING = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")
SETTINGS = [
    (name, ours)
    for theirs, ours in re.findall(r"^\| (`.*?`) \| (.*?) \| .*\|$", MIGRATING.split("## Objects")[0], re.MULTILINE)
    for name in re.findall(r"`(\w+)`", theirs)
]


@pytest.mark.parametrize(("theirs", "ours"), SETTINGS)
def test_a_setting_of_trl_is_told_as_the_page_on_migrating_has_it(theirs, ours):
    """The constructor refuses the other name; where it knows ours, the page says the same."""
    if theirs in PPOConfig.__dataclass_fields__:
        assert theirs in ours
        return
    with pytest.raises(TypeError, match=theirs):
        PPOConfig(**{theirs: 1})
    if theirs in OTHER_WORDS and "nothing" not in OTHER_WORDS[theirs]:
        assert set(re.findall(r"\w{3,}", OTHER_WORDS[theirs])) & set(re.findall(r"\w{3,}", ours))


def test_the_page_on_migrating_has_every_name_that_the_constructor_knows_of_trl():
    newer = {"lr", "num_ppo_epochs", "num_generations", "response_length", "kl_coef", "max_new_tokens"}
    assert set(OTHER_WORDS) - newer <= {name for name, _ in SETTINGS}
