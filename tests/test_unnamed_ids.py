"""Ids that no token has: padding of an embedding, and holes in a tokenizer. They are in nobody's distribution."""

import pytest
import torch
from test_policy import HIGH, LOW, PROMPTS, rolled_out, sample
from transformers import AutoModelForCausalLM, AutoTokenizer

from models import LoraSettings, load_policy, load_reward_model
from models import policy as policy_module
from models.distribution import gaps, token_distribution
from models.tiny import save_tiny, tiny_tokenizer
from redistributors import Sparse
from rlhf_core import PPOTrainer
from rlhf_core.evidence import AuxiliaryLogprobs, FullKL, TokenEntropy
from test_shared_policy import small_run

NAMED, PADDED = 32, 41
NEEDS = frozenset({FullKL(), TokenEntropy(), AuxiliaryLogprobs(name="beside")})


def padded(folder, family="gpt2", hole=False, **settings):
    """A model with more rows than its tokenizer has ids, the last of them wanted most; with a hole at 32 to 36."""
    save_tiny(folder, family, vocab_size=PADDED, std=0.3, **settings)
    tokenizer = tiny_tokenizer(vocab_size=NAMED)
    tokenizer.save_pretrained(folder)
    if hole:
        _punch(folder)
    return str(folder)


def _punch(folder):
    """Give the token of id 20 the id 37."""
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    word = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(20)
    assert f'"{word}": 20' in text
    (folder / "tokenizer.json").write_text(text.replace(f'"{word}": 20', f'"{word}": 37'), encoding="utf-8")


def named(hole):
    return sorted(({*range(NAMED)} - {20}) | {37}) if hole else list(range(NAMED))


@torch.no_grad()
def by_hand(lm, prompt, response, low, ids, eos, temperature):
    """log p of the response and entropies among the named ids alone, which are all the others' logits are cut to."""
    logits = lm(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1][:, ids] / temperature
    for step in range(min(low, len(response))):
        logits[step, [ids.index(token) for token in eos]] = -torch.inf
    logprobs = logits.log_softmax(-1)
    chosen = torch.stack([row[ids.index(token)] for row, token in zip(logprobs, response, strict=True)])
    entropy = torch.stack([-(row[row > -torch.inf].exp() * row[row > -torch.inf]).sum() for row in logprobs])
    return chosen, entropy


@pytest.mark.parametrize("road", ["whole", "in parts"])
@pytest.mark.parametrize("hole", [False, True], ids=["padded", "hole"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_everything_is_measured_among_ids_that_are_tokens(tmp_path, family, hole, road, monkeypatch):
    folder, other = (padded(tmp_path / name, family, hole, seed=seed) for name, seed in (("policy", 0), ("beside", 1)))
    if road == "in parts":
        monkeypatch.setattr(policy_module, "KEPT_CELLS", 1)
    policy = load_policy(folder, temperature=0.8, auxiliaries={"beside": other})
    ids = named(hole)
    drawn = sample(policy)
    assert {token for row in drawn.responses() for token in row} <= set(ids)
    found = rolled_out(policy, drawn, NEEDS if road == "whole" else NEEDS - {FullKL()})
    graded = policy.evaluate(drawn, frozenset())
    reference = policy.reference_logprobs(drawn)
    models = [AutoModelForCausalLM.from_pretrained(place).eval() for place in (folder, other)]
    for row, (prompt, response) in enumerate(zip(drawn.prompts(), drawn.responses(), strict=True)):
        n = len(response)
        own, beside = (by_hand(lm, prompt, response, int(LOW[row]), ids, policy.eos_ids, 0.8) for lm in models)
        for logprobs in (found.logprobs, graded.logprobs, reference):
            torch.testing.assert_close(logprobs[row, :n].detach(), own[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.evidence[TokenEntropy()][row, :n], own[1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            found.evidence[AuxiliaryLogprobs(name="beside")][row, :n], beside[0], atol=1e-5, rtol=1e-5
        )
    if road == "whole":
        assert found.evidence[FullKL()].abs().max() < 1e-6
        assert not found.evidence[FullKL()].isnan().any()


@pytest.mark.parametrize("road", ["whole", "in parts"])
def test_rows_of_ids_without_a_token_get_no_gradient(tmp_path, road, monkeypatch):
    policy = load_policy(padded(tmp_path, "llama", tied=False) if _has_tied() else padded(tmp_path, "llama"))
    if road == "in parts":
        monkeypatch.setattr(policy_module, "KEPT_CELLS", 1)
    evaluation = policy.evaluate(sample(policy), frozenset())
    (evaluation.logprobs.sum() + evaluation.entropy.sum()).backward()
    gradient = policy.language_model.get_output_embeddings().weight.grad
    assert (gradient[NAMED:] == 0).all()
    assert gradient[:NAMED].any(1).all()
    assert gradient.isfinite().all()
