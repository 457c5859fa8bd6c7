"""Encoders as reward models: each family's score is the logit its own class gives, alone and in ragged company."""

import pytest
import torch
from fakes import sequences_of
from transformers import AutoConfig, AutoModelForSequenceClassification

from models.rewards.classifier_reward import ClassifierReward
from models.tiny import tiny_tokenizer
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
