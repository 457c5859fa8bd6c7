"""Encoders as reward models: each family's score is the logit its own class gives, alone and in ragged company."""

import copy
import re
from pathlib import Path

import pytest
import torch
from attention_families import ReadRow
from fakes import sequences_of
from transformers import AutoConfig, AutoModelForSequenceClassification

from models import load_reward_model
from models.rewards.classifier_reward import ClassifierReward
from models.tiny import tiny_tokenizer
from redistributors import REDISTRIBUTORS
from rlhf_core.evidence import AttentionTap

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
RELATIVE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
MODERN = {"global_attn_every_n_layers": 2, "local_attention": 4, "cls_token_id": 2, "sep_token_id": 3}
BUCKETS = {"position_buckets": 4, "max_relative_positions": -1, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
MODERN |= {"bos_token_id": 2, "eos_token_id": 3}
FAMILIES = {
    "bert": ("bert", SHAPE),
    "roberta": ("roberta", SHAPE),
    "xlm-roberta": ("xlm-roberta", SHAPE),
    "camembert": ("camembert", SHAPE),
    "mpnet": ("mpnet", SHAPE),
    "electra": ("electra", {**SHAPE, "embedding_size": 16}),
    "albert": ("albert", {**SHAPE, "embedding_size": 16}),
    "rembert": ("rembert", {**SHAPE, "input_embedding_size": 16}),
    "distilbert": ("distilbert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "pad_token_id": 1}),
    "deberta": ("deberta", {**SHAPE, **RELATIVE}),
    "deberta-v2": ("deberta-v2", {**SHAPE, **RELATIVE}),
    "deberta-v3": ("deberta-v2", {**SHAPE, **RELATIVE, **BUCKETS}),
    "deberta-v2, convolution": ("deberta-v2", {**SHAPE, **RELATIVE, **BUCKETS, "conv_kernel_size": 3}),
    "modernbert": ("modernbert", {**SHAPE, **MODERN}),
    "modernbert, mean": ("modernbert", {**SHAPE, **MODERN, "classifier_pooling": "mean"}),
}
READS = {family: "several" if "mean" in family else "first" for family in FAMILIES}
ROWS = ([[2, 3, 4], [2, 5], [2, 6, 7, 8, 9]], [[5, 6, 7, 8], [9], [10, 11]])


def drawn(family: str, settings: dict, labels: int = 1):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=32, num_labels=labels, **settings)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.2)
    return model


def reward_of(name: str) -> ClassifierReward:
    tokenizer = tiny_tokenizer(vocab_size=32)
    tokenizer.cls_token = "w2"
    return ClassifierReward(drawn(*FAMILIES[name]), tokenizer, score="single_logit")


@pytest.mark.parametrize("name", FAMILIES)
def test_an_encoder_scores_ragged_rows_as_its_own_class_scores_each_alone(name):
    reward = reward_of(name)
    found = reward.score(sequences_of(*ROWS), frozenset()).scores
    with torch.no_grad():
        rows = [torch.tensor([prompt + response]) for prompt, response in zip(*ROWS, strict=True)]
        own = torch.stack([reward.model(input_ids=row).logits[0, 0] for row in rows])
    assert own.std() > 1e-2  # else any head would do
    torch.testing.assert_close(found, own, atol=1e-6, rtol=1e-5)
    assert reward.head.reads == READS[name]
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("albert", "modernbert, mean")])
def test_the_attention_of_an_encoder_is_that_of_its_own_class_at_cls(name):
    reward, rows = reward_of(name), sequences_of(*ROWS)
    assert all(reward.provides(request) for request in REDISTRIBUTORS["abc"]().needs)
    before = reward.score(rows, frozenset()).scores
    scored = reward.score(rows, frozenset({ReadRow(), ReadRow(layer=0)}))
    assert torch.equal(scored.scores, before)
    for layer in (0, -1):
        for row, (prompt, response) in enumerate(zip(*ROWS, strict=True)):
            with torch.no_grad():
                own = maps_of(reward, torch.tensor([prompt + response]))[layer][0, :, 0, len(prompt) :].mean(0)
            found = scored.evidence[ReadRow(layer=layer)][row]
            torch.testing.assert_close(found[: len(response)], own, atol=1e-6, rtol=1e-5)
            assert not found[len(response) :].any()
    assert not any(module._forward_pre_hooks for module in reward.model.modules())


def maps_of(reward: ClassifierReward, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Attention maps of the class's own eager forward pass, on a copy."""
    other = copy.deepcopy(reward.model)
    other.config._attn_implementation = "eager"
    maps: tuple[torch.Tensor, ...] = other(input_ids=ids, output_attentions=True).attentions
    return maps


def test_attention_that_several_layers_share_is_refused_by_name():
    reason = reward_of("albert").why_not(ReadRow())
    assert reason.startswith("AlbertForSequenceClassification: no way to read its attention weights")
    assert "several of its layers share one attention module" in reason


@pytest.mark.parametrize("name", ["distilbert", "albert", "deberta", "deberta-v3", "modernbert", "modernbert, mean"])
def test_the_folder_of_an_encoder_scores_the_label_that_is_named(name, tmp_path):
    model = drawn(*FAMILIES[name], labels=3)
    model.config.id2label = {0: "neutral", 1: "positive", 2: "negative"}
    model.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer(vocab_size=32)
    tokenizer.cls_token = "w2"
    tokenizer.save_pretrained(tmp_path)
    reward = load_reward_model(str(tmp_path), label="positive")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        rows = [torch.tensor([prompt + response]) for prompt, response in zip(*ROWS, strict=True)]
        logits = torch.cat([theirs(input_ids=row).logits for row in rows])
    odds = logits.softmax(1)[:, 1].logit()
    together = reward.score(sequences_of(*ROWS), frozenset()).scores
    torch.testing.assert_close(together, odds, atol=1e-5, rtol=1e-5)
    reward.micro_batch_tokens = 1  # each row alone, so that none has padding
    torch.testing.assert_close(reward.score(sequences_of(*ROWS), frozenset()).scores, together, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="3 labels, and nothing says which is the reward"):
        load_reward_model(str(tmp_path))


@pytest.fixture(scope="module")
def architectures():
    """The rows of the table of architectures in docs/methods.md."""
    page = (Path(__file__).resolve().parents[3] / "docs/methods.md").read_text(encoding="utf-8")
    table = page.split("## Which classifiers are reward models")[1]
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_of_architectures_says_where_each_is_read_and_whether_its_attention_is(name, architectures):
    kind = f"`{FAMILIES[name][0]}`{' with' if 'mean' in name else ''}"
    where, attention = next(row[1:3] for row in architectures if re.search(rf"{kind}(?! with)", row[0]))
    assert where == {"first": "[CLS]", "several": "every token"}[READS[name]]
    assert attention.startswith("yes") == reward_of(name).provides(ReadRow())


def test_a_score_read_at_several_tokens_has_no_row_of_attention():
    assert "several tokens" in reward_of("modernbert, mean").why_not(AttentionTap(source="reward"))
    assert reward_of("modernbert").provides(AttentionTap(source="reward"))


def classifier(family: str, settings: dict) -> str:
    """Why the model is refused."""
    tokenizer = tiny_tokenizer(vocab_size=32)
    tokenizer.cls_token = "w2"
    with pytest.raises(ValueError) as refused:
        ClassifierReward(drawn(family, settings), tokenizer, score="single_logit")
    return str(refused.value)


def test_a_head_that_wants_more_than_hidden_states_is_refused_by_name():
    said = classifier("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64})
    assert said.startswith("XLNetForSequenceClassification: cannot find its classification head (AttributeError: ")
    sizes = ("layers", "attention_heads", "ffn_dim")
    sides = {f"{side}_{size}": 2 for side in ("encoder", "decoder") for size in sizes}
    said = classifier("bart", {"d_model": 32, **sides})
    assert said.startswith("BartForSequenceClassification: cannot find its classification head (ValueError: ")


@pytest.mark.parametrize("family", ["mobilebert", "convbert"])
def test_an_encoder_whose_states_depend_on_padding_is_refused(family):
    """Both look at the neighbours of a token, whatever the mask says of them."""
    said = classifier(family, {**SHAPE, "embedding_size": 16, "intra_bottleneck_size": 32})
    assert "applied to hidden states of padded rows, differs from its own forward pass by" in said
