"""Ids that no token has: padding of an embedding, and holes in a tokenizer. They are in nobody's distribution."""

import pytest
import torch
from fakes import small_run
from policies import HIGH, LOW, PROMPTS, rolled_out, sample
from transformers import AutoModelForCausalLM, AutoTokenizer

from models import LoraSettings, load_policy, load_reward_model
from models.passes.distribution import gaps, token_distribution
from models.policy import causal_policy as policy_module
from models.tiny import save_tiny, tiny_tokenizer
from redistributors import Sparse
from rlhf_core import PPOTrainer
from rlhf_core.evidence import AuxiliaryLogprobs, FullKL, TokenEntropy

NAMED, PADDED = 32, 41
EOS, TEMPERATURE = 1, 0.8
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
def by_hand(lm, prompt, response, low, ids):
    """log p of the response and entropies among the named ids alone, which are all the others' logits are cut to."""
    logits = lm(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1][:, ids] / TEMPERATURE
    for step in range(min(low, len(response))):
        logits[step, ids.index(EOS)] = -torch.inf
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
    policy = load_policy(folder, auxiliaries={"beside": other})
    assert policy.eos_ids == (EOS,)
    ids = named(hole)
    drawn = sample(policy, temperature=TEMPERATURE)
    assert {token for row in drawn.responses() for token in row} <= set(ids)
    needs = NEEDS if road == "whole" else NEEDS - {FullKL()}
    found = rolled_out(policy, drawn, needs, temperature=TEMPERATURE)
    graded = policy.evaluate(drawn, frozenset(), temperature=TEMPERATURE)
    reference = policy.reference_logprobs(drawn, temperature=TEMPERATURE)
    models = [AutoModelForCausalLM.from_pretrained(place).eval() for place in (folder, other)]
    for row, (prompt, response) in enumerate(zip(drawn.prompts(), drawn.responses(), strict=True)):
        n = len(response)
        own, beside = (by_hand(lm, prompt, response, int(LOW[row]), ids) for lm in models)
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
    policy = load_policy(padded(tmp_path, "llama"))
    if road == "in parts":
        monkeypatch.setattr(policy_module, "KEPT_CELLS", 1)
    evaluation = policy.evaluate(sample(policy), frozenset())
    (evaluation.logprobs.sum() + evaluation.entropy.sum()).backward()
    gradient = policy.language_model.get_output_embeddings().weight.grad
    assert (gradient[NAMED:] == 0).all()
    assert gradient[:NAMED].any(1).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("hole", [False, True], ids=["padded", "hole"])
@pytest.mark.parametrize("kind", ["callable", "model"])
def test_a_trainer_takes_a_reward_that_reads_the_tokens_alone(tmp_path, kind, hole):
    policy = load_policy(padded(tmp_path / "policy", "llama", hole), lora=LoraSettings(rank=2))
    head = policy.language_model.get_output_embeddings().weight
    with torch.no_grad():
        head[[32, 40]] += 3 * head.abs().max()  # ids that would be drawn nearly always
    reward = save_tiny(tmp_path / "reward", "llama", head="classifier", vocab_size=max(named(hole)) + 1)
    policy.tokenizer.save_pretrained(reward)
    scorer = load_reward_model(reward, score="single_logit") if kind == "model" else lambda _, texts: [1.0] * len(texts)
    trainer = PPOTrainer(policy, scorer, Sparse(), small_run(first_step_checks="warn"))
    sequences = trainer.collect([[2], [3, 4], [5], [6]]).sequences
    assert {token for row in sequences.responses() for token in row} <= set(named(hole))


def test_a_reward_model_that_does_not_read_every_token_is_refused(tmp_path):
    policy = load_policy(padded(tmp_path / "policy"))
    reward = save_tiny(tmp_path / "reward", "gpt2", head="classifier", vocab_size=NAMED - 1)
    policy.tokenizer.save_pretrained(reward)
    with pytest.raises(ValueError, match="draws token ids 0 to 31, but the reward model reads only 0 to 30"):
        PPOTrainer(policy, load_reward_model(reward, score="single_logit"), Sparse(), small_run())


def test_prompts_and_eos_ids_without_a_token_are_refused_by_name(tmp_path):
    plain, hole = padded(tmp_path / "plain"), padded(tmp_path / "hole", hole=True)
    with pytest.raises(ValueError, match=r"row 1 holds ids \[35\] outside the vocabulary of 32"):
        load_policy(plain).validate([[2], [3, 35]], 4)
    with pytest.raises(ValueError, match=r"row 1 holds ids \[20, 35\], for which the tokenizer has no token"):
        load_policy(hole).validate([[2, 37], [3, 20, 35]], 4)
    with pytest.raises(ValueError, match=r"row 0 holds ids \[40\]"):
        sample(load_policy(hole), [[2, 40], *PROMPTS[1:]], LOW, HIGH)
    with pytest.raises(ValueError, match=r"EOS ids \[35\] have no token"):
        load_policy(plain, eos_ids=(1, 35))
    load_policy(hole).validate([[2, 37]], 4)


def test_gaps_are_what_lies_between_the_ids_and_after_them():
    assert gaps([0, 1, 2]) == ((3, None),)
    assert gaps({5, 1, 2, 7}) == ((0, 1), (3, 5), (6, 7), (8, None))
    steps = torch.zeros(2, dtype=torch.long)
    garbage = torch.tensor([[0.0, 0.0, torch.nan], [1.0, 0.0, torch.inf]])  # padding holds anything
    found = token_distribution(garbage, (), steps, steps, 1.0, unnamed=gaps([0, 1])).exp()
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5, 0.0], [0.7310586, 0.2689414, 0.0]]))
