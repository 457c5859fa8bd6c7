"""A classifier as a judge of altered responses, and its scores by hand."""

import torch

from models.rewards.classifier_reward import ClassifierReward
from models.tiny import tiny_gpt2_classifier, tiny_llama_classifier, tiny_tokenizer

MODELS = {"gpt2": tiny_gpt2_classifier, "llama": tiny_llama_classifier}


def judge_of(family="gpt2", padding="own", micro_batch_tokens=4096, **settings):
    model = MODELS[family](vocab_size=33, **settings).double()
    tokenizer = tiny_tokenizer(vocab_size=33, padding=padding)
    return ClassifierReward(model, tokenizer, score="single_logit", micro_batch_tokens=micro_batch_tokens)


def by_hand(judge, ids):
    """The score of one row of token ids, through transformers' own forward."""
    with torch.no_grad():
        return float(judge.model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0, 0])
