"""Log-ratios to a second policy: its three modes by hand, and auxiliary models against transformers' own forward."""

import inspect
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import TablePolicy, rollout_of, sequences_of, unchecked
from hashing import frozen_hashes
from policies import LORA, plain_adapter, sample, sft_adapter
from transformers import AutoModelForCausalLM

from models import load_policy
from models.policy.auxiliaries import _same_weights, auxiliary_sources
from models.tiny import save_tiny
from models.weights.source import ModelSource
from redistributors import LogRatio, Sparse
from rlhf_core import PPOConfig, PPOTrainer, TokenReward
from rlhf_core.checks import check_gamma, check_placement
from rlhf_core.evidence import AuxiliaryLogprobs
from rlhf_core.returns import generalized_advantages

DPO = AuxiliaryLogprobs(name="dpo")
CONFIG = PPOConfig(rollout_batch_size=8, minibatch_size=8, learning_rate=1e-2, min_length=2, max_length=(4, 8))
PROMPTS = [[2, 3], [4], [5, 6, 7], [9]] * 2


def case(mode, score, theirs=(-1.0, -6.0, -1.0), reference=(-2.0, -1.0, -41.0)):
    """Log-ratios 1, -5 and 40; scaled by a tenth and clipped at 1: 0.1, -0.5 and 1."""
    rollout = rollout_of(sequences_of([[1]], [[2, 3, 4]]), [score], {DPO: torch.tensor([theirs])})
    rollout = replace(rollout, ref_logprobs=torch.tensor([reference]))
    method = LogRatio(mode=mode)
    return method(rollout)[0].tolist(), method.metrics(rollout)


@pytest.mark.parametrize(
    ("mode", "score", "wanted"),
    [
        ("add", 2.0, [0.1, -0.5, 1 + 2]),
        ("add", -2.0, [0.1, -0.5, 1 - 2]),
        ("shape", 2.0, [0.1, -0.5, 2 - 0.1 + 0.5]),
        ("rescale", 2.2, [0.2, 0, 2]),
        ("rescale", -2.0, [0, -2, 0]),
        ("rescale", 0.0, [0, 0, 0]),
    ],
)
def test_modes_by_hand(mode, score, wanted):
    token_scores, figures = case(mode, score)
    assert token_scores == pytest.approx(wanted)
    fallback = {"credit_fallback": float(score == 0)} if mode == "rescale" else {}
    assert figures == pytest.approx({"log_ratio": 0.6, "log_ratio_clipped": 1 / 3} | fallback)


def test_where_no_token_has_the_scores_sign_the_last_gets_everything():
    token_scores, figures = case("rescale", -2.0, (-1.0, -1.0, -1.0), (-2.0, -2.0, -1.0))
    assert token_scores == [0, 0, -2]
    assert figures["credit_fallback"] == 1


@pytest.mark.parametrize(("mode", "causal", "conserving"), [("add", 1, 0), ("shape", 1, 1), ("rescale", 0, 1)])
def test_each_mode_declares_what_it_keeps(mode, causal, conserving):
    method = LogRatio(mode=mode)
    assert (method.causal, method.conserving) == (causal, conserving)
    sequences = sequences_of([[1]] * 2, [[2, 3, 4, 5], [2, 3]])
    evidence = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)) * sequences.response_mask
    rollout = rollout_of(sequences, [2.0, -3.0], {DPO: evidence})
    token_scores = method(rollout)
    sums = rollout.scores if conserving else rollout.scores + 0.1 * (evidence - rollout.ref_logprobs).sum(1)
    torch.testing.assert_close(token_scores.sum(1), sums)
    evidence = evidence.clone()
    evidence[0, 2:] = torch.tensor([-3.0, 4.0])
    later = method(replace(rollout, evidence={DPO: evidence}, scores=torch.tensor([-1.0, -3.0])))
    assert torch.equal(later[0, :2], token_scores[0, :2]) == causal


@pytest.mark.parametrize("lam", [1.0, 0.95, 0.0])
def test_shape_is_the_sparse_score_with_the_critic_shifted(lam):
    sequences = sequences_of([[1]] * 2, [[2, 3, 4, 5], [2, 3]])
    mask = sequences.response_mask
    evidence = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)) * mask
    rollout = rollout_of(sequences, [2.0, -3.0], {DPO: evidence})
    potential = torch.zeros(2, 4)
    for row, token in mask.nonzero().tolist():
        so_far = [float(evidence[row, k] - rollout.ref_logprobs[row, k]) * 0.1 for k in range(token)]
        potential[row, token] = math.fsum(so_far)
    arguments = {"mask": mask, "gamma": 1.0, "lam": lam}
    shaped = generalized_advantages(LogRatio(mode="shape")(rollout), rollout.values, **arguments)
    sparse = generalized_advantages(Sparse()(rollout), rollout.values + potential, **arguments)
    torch.testing.assert_close(shaped, sparse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"policy": ""}, {"scale": 0.0}, {"scale": True}, {"clip": math.inf}, {"clip": "1"}, {"mode": "mean"}]
)
def test_impossible_settings_are_refused(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"^LogRatio: {name} .*, got {value!r}$"):
        unchecked(LogRatio, **settings)


def test_spreading_the_score_is_refused_under_a_discount_and_a_reward_of_its_own_is_not():
    rollout = rollout_of(sequences_of([[1]], [[2, 3]]), [2.0], {DPO: torch.zeros(1, 2)})
    add, shape, rescale = (LogRatio(mode=mode) for mode in ("add", "shape", "rescale"))
    for method in (add, shape):
        check_gamma(method, 0.9)
    check_placement(add(rollout), rollout, add, 0.9)
    with pytest.raises(ValueError, match="conserves the score but places it before the last token"):
        check_placement(shape(rollout), rollout, shape, 0.9)
    with pytest.raises(ValueError, match="conserves the score but places it before the last token"):
        check_gamma(rescale, 0.9)


# -- auxiliary models


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A policy, another model with its tokens, and an adapter on each."""
    root = tmp_path_factory.mktemp("auxiliary")
    found = {"model": save_tiny(root / "model", "llama", dropout=0.1, seed=1)}
    found["other"] = save_tiny(root / "other", "gpt2", dropout=0.1, seed=2)
    found["adapter"] = sft_adapter("llama", found["model"], root / "adapter")
    found["adapter on other"] = sft_adapter("gpt2", found["other"], root / "adapter-on-other")
    return found


def loaded(folders, kind, auxiliary, **settings):
    lora = LORA if kind == "lora" else None
    where = folders["adapter" if kind == "adapter" else "model"]
    return load_policy(where, lora=lora, auxiliaries={"dpo": folders[auxiliary]} if auxiliary else {}, **settings)


def shares_weights(kind, auxiliary):
    return auxiliary == "adapter" and kind != "full"


def plain_model(folders, auxiliary):
    if auxiliary == "adapter":
        return plain_adapter(folders["model"], folders["adapter"])
    if auxiliary == "adapter on other":
        return plain_adapter(folders["other"], folders["adapter on other"])
    return AutoModelForCausalLM.from_pretrained(folders[auxiliary])


@torch.no_grad()
def by_hand(lm, s, eos, temperature):
    """Row by row, token by token, with transformers alone."""
    lm.eval()
    found = torch.zeros(s.response_ids.shape)
    for row, (prompt, response) in enumerate(zip(s.prompts(), s.responses())):
        logits = lm(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / temperature
        for t, token in enumerate(response):
            if t < int(s.min_lengths[row]):
                logits[t, list(eos)] = -math.inf
            found[row, t] = logits[t].log_softmax(-1)[token]
    return found


def asked(policy, s):
    with torch.no_grad():
        return policy.evaluate(s, frozenset({DPO}), temperature=0.7)


@pytest.mark.parametrize("auxiliary", ["model", "other", "adapter", "adapter on other"])
@pytest.mark.parametrize("kind", ["full", "lora", "adapter"])
def test_log_probabilities_are_those_of_the_auxiliary_and_the_policys_own_stay(folders, kind, auxiliary, monkeypatch):
    policy, alone = loaded(folders, kind, auxiliary), loaded(folders, kind, "")
    held = policy._network.auxiliaries["dpo"]
    assert (held.lm is policy._lm) == shares_weights(kind, auxiliary)
    s = sample(policy)
    found = asked(policy, s)
    wanted = by_hand(plain_model(folders, auxiliary), s, policy.eos_ids, 0.7)
    torch.testing.assert_close(found.evidence[DPO], wanted, atol=1e-5, rtol=1e-5)
    assert not found.evidence[DPO].requires_grad
    with torch.no_grad():
        own = alone.evaluate(s, frozenset(), temperature=0.7)
    assert torch.equal(own.logprobs, found.logprobs)
    assert torch.equal(alone.reference_logprobs(s), policy.reference_logprobs(s))
    assert [x.shape for x in alone.parameters()] == [x.shape for x in policy.parameters()]
    monkeypatch.setattr("models.policy.causal_policy.KEPT_CELLS", 0)
    monkeypatch.setattr("models.passes.token_statistics.RECOMPUTED_CELLS", 3 * 32)
    sizes, heads = [], {id(lm): lm.get_output_embeddings() for lm in (policy._lm, held.lm)}
    asked(policy, s)  # whether the heads can work in parts is found out once
    for head in heads.values():
        head.register_forward_hook(lambda _, __, out: sizes.append(out.numel()))
    in_parts = asked(policy, s)
    assert max(sizes) == 3 * 32
    torch.testing.assert_close(in_parts.evidence[DPO], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(in_parts.logprobs, own.logprobs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("auxiliary", ["other", "adapter"])
@pytest.mark.parametrize("kind", ["full", "lora", "adapter"])
def test_an_auxiliary_is_never_trained_nor_saved(folders, kind, auxiliary, tmp_path):
    policy = loaded(folders, kind, auxiliary)
    trainer = PPOTrainer(policy, TokenReward(lambda p, r: [float(len(x)) for x in r]), LogRatio(), CONFIG)
    s = sample(policy)
    parts = (policy._network.reference.lm, policy._network.auxiliaries["dpo"].lm)
    before, frozen, own = asked(policy, s), frozen_hashes(policy), hashes(parts[1], kind, auxiliary)
    trained = [parameter.detach().clone() for parameter in policy.parameters()]
    for _ in range(2):
        assert "log_ratio" in trainer.step(PROMPTS)
    assert not all(torch.equal(old, new) for old, new in zip(trained, policy.parameters()))
    assert frozen_hashes(policy) == frozen
    assert hashes(parts[1], kind, auxiliary) == own
    after = asked(policy, s)
    assert torch.equal(after.evidence[DPO], before.evidence[DPO])
    assert not torch.equal(after.logprobs, before.logprobs)
    for name, saved in (("with", policy), ("without", loaded(folders, kind, ""))):
        (tmp_path / name).mkdir()
        saved.save(str(tmp_path / name))
    one, other = (
        {(file.name, file.stat().st_size) for file in (tmp_path / name).iterdir()} for name in ("with", "without")
    )
    assert {file for file in one if file[0].endswith("safetensors")} == {
        file for file in other if file[0].endswith("safetensors")
    }
    again = load_policy(str(tmp_path / "with"))
    assert not again.provides(DPO)


def hashes(lm, kind, auxiliary):
    """Every number of an auxiliary that shares nothing with what is trained; that of one that does is in the
    reference's, whose hashes leave out only the trained adapter."""
    return (
        {}
        if shares_weights(kind, auxiliary)
        else {name: x.clone().numpy().tobytes() for name, x in lm.state_dict().items()}
    )


def test_a_policy_without_the_auxiliary_refuses_with_the_way_out(folders):
    reward = TokenReward(lambda p, r: [0.0] * len(r))
    way_out = (
        r"no auxiliary model 'ppo' \(held: 'dpo'\); load it with load_policy\(\.\.\., auxiliaries=\{'ppo': <folder"
    )
    with pytest.raises(ValueError, match=way_out):
        PPOTrainer(loaded(folders, "full", "other"), reward, LogRatio(policy="ppo"), CONFIG)
    with pytest.raises(ValueError, match=r"TablePolicy cannot give: it does not measure such evidence"):
        PPOTrainer(TablePolicy(), reward, LogRatio(), CONFIG)


def test_an_auxiliary_that_reads_other_tokens_is_refused(folders, tmp_path):
    words = [f"v{i}" for i in range(2, 32)]
    with pytest.raises(ValueError, match=r"auxiliary 'dpo' \(.*words\) must share the policy's tokenizer, but 60 of"):
        load_policy(folders["model"], auxiliaries={"dpo": save_tiny(tmp_path / "words", "llama", words=words)})
    padded = save_tiny(tmp_path / "padded", "llama", vocab_size=34, words=[f"w{i}" for i in range(2, 32)])
    with pytest.raises(ValueError, match=r"gives probabilities to 34 token ids, the policy to 32; .*resize_token_emb"):
        load_policy(folders["model"], auxiliaries={"dpo": padded})
    with pytest.raises(TypeError, match="auxiliaries must map names to folders or hub names, got 'dpo'"):
        inspect.unwrap(auxiliary_sources)("dpo", None)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_policy(folders["model"], auxiliaries={"dpo": str(tmp_path / "nowhere" / "at" / "all")})


@pytest.mark.parametrize(
    ("under", "revision", "same"),
    [("a/b", None, True), ("a/b", "v1", True), ("a/b", "v2", False), ("a/c", "v1", False), ("a/c", None, False)],
)
def test_an_adapter_on_a_hub_model_shares_the_weights_that_the_policy_is_pinned_to(under, revision, same, monkeypatch):
    monkeypatch.setattr("models.weights.source.is_offline_mode", lambda: False)
    monkeypatch.setattr("models.weights.source._why_unreachable", lambda: "")  # no name is looked up
    policy = ModelSource(name_or_path="a/b", revision="v1")
    assert _same_weights(ModelSource(name_or_path=under, revision=revision), policy) == same


def test_four_bit_weights_stay_and_an_adapter_on_them_shares_them(tmp_path):
    pytest.importorskip("bitsandbytes")
    model = save_tiny(tmp_path / "model", "llama", hidden_size=64, std=0.15)
    adapter = sft_adapter("llama", model, tmp_path / "adapter")
    policy = load_policy(model, four_bit=True, lora=LORA, auxiliaries={"dpo": adapter})
    assert policy._network.auxiliaries["dpo"].lm is policy._lm
    trainer = PPOTrainer(policy, TokenReward(lambda p, r: [float(len(x)) for x in r]), LogRatio(), CONFIG)
    s, frozen = sample(policy), frozen_hashes(policy)
    before = asked(policy, s)
    assert float((before.evidence[DPO] - before.logprobs).abs().max()) > 0.1
    trainer.step(PROMPTS)
    assert frozen_hashes(policy) == frozen
    assert torch.equal(asked(policy, s).evidence[DPO], before.evidence[DPO])
    assert Path(model).is_dir()
