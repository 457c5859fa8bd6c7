"""A question changes nothing: weights, settings and what a model computes are, to the bit, what they were before."""

import hashlib

import pytest
import torch
from attention_families import FAMILIES, VOCAB, ReadRow, build, run
from fakes import sequences_of
from policies import LastRow
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from models import LoraSettings, load_policy
from models.attention.reader import AttentionReader, UnsupportedAttention
from models.attention.taps import implementations
from models.rewards.classifier_reward import ClassifierReward
from models.tiny import tiny_tokenizer
from redistributors import REDISTRIBUTORS
from rlhf_core.evidence import FullKL

SDPA_ALIBI = {"attn_implementation": "sdpa"}
CAUSAL = {name: {} for name in FAMILIES if name not in ("bert", "roberta")}
EVERY = CAUSAL | {
    "falcon-alibi-sdpa": SDPA_ALIBI,
    "gpt2-eager": {"attn_implementation": "eager"},
    "llama-eager": {"attn_implementation": "eager"},
    "gpt_oss": {},
    "starcoder2": {},
    "stablelm": {},
    "mpt": {"max_seq_len": 64},
}
OTHERS = {
    "starcoder2": FAMILIES["llama-gqa"] | {"bos_token_id": 1, "eos_token_id": 1},
    "stablelm": FAMILIES["llama-gqa"],
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
}
TRANSFORMERS_MARK = "_output_capturing_hooks_installed"
REFUSING = ("falcon-alibi-sdpa", "gpt_oss")
BATCH = sequences_of([[2, 3, 4, 5], [6], [7, 8]], [[9, 10, 11], [12, 13, 14, 15, 16], [17]])
EQUAL = sequences_of([[2, 3], [4, 5], [6, 7]], [[9, 10], [12, 13], [17, 18]])


def made(name, auto, **changes):
    family = name.removesuffix("-sdpa").removesuffix("-eager")
    if family not in OTHERS:
        return build(family, auto, **EVERY[name], **changes)
    settings = OTHERS[family] | {"vocab_size": VOCAB, "pad_token_id": 0} | EVERY[name] | changes
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(family, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def state_of(model):
    """Everything that decides what ``model`` computes: weights, buffers, modes, attributes and settings. The hooks with
    which transformers answers ``output_attentions``, put up when it is first asked and silent otherwise, are its own.
    """
    digest = hashlib.sha256()
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{key} {tensor.requires_grad}".encode() + tensor.detach().contiguous().numpy().tobytes())
    modules = [(module.training, sorted(vars(module).keys() - {TRANSFORMERS_MARK})) for module in model.modules()]
    configs = [(repr(config), implementation) for config, implementation in implementations(model)]
    return digest.hexdigest(), modules, configs


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of a language model by its name, made once."""
    root = tmp_path_factory.mktemp("asked")

    def folder(name):
        where = root / name
        if not where.is_dir():
            model = made(name, AutoModelForCausalLM)
            model.save_pretrained(where)
            tiny_tokenizer(vocab_size=VOCAB).save_pretrained(where)
        return str(where)

    return folder


@torch.no_grad()
def of_policy(policy, needs=frozenset()):
    """All numbers, exactly, on ragged and on equal rows."""
    found = [(policy.evaluate(rows, needs), policy.reference_logprobs(rows)) for rows in (BATCH, EQUAL)]
    return [x.tolist() for e, reference in found for x in (e.logprobs, e.values, e.entropy, reference)]


def of_reward(reward, needs=frozenset()):
    return [reward.score(rows, needs).scores.tolist() for rows in (BATCH, EQUAL)]


@pytest.mark.parametrize("name", EVERY)
def test_a_reward_model_scores_as_if_it_had_not_been_asked(name):
    model = made(name, AutoModelForSequenceClassification, num_labels=1)
    reward = ClassifierReward(model, tiny_tokenizer(vocab_size=VOCAB), score="single_logit")
    before, state = of_reward(reward), state_of(model)
    answers = {key: reward.provides(request) for key in REDISTRIBUTORS for request in REDISTRIBUTORS[key]().needs}
    readable = reward.provides(ReadRow())
    assert readable is (name not in REFUSING), reward.why_not(ReadRow())
    assert answers
    assert state_of(model) == state
    assert of_reward(reward) == before
    if readable:
        assert of_reward(reward, frozenset({ReadRow()})) == before
        assert state_of(model) == state


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-eager", "falcon", "falcon-alibi-sdpa", "bloom", "gemma2"])
def test_a_policy_and_its_reference_compute_as_if_they_had_not_been_asked(name, lora, folder_of):
    policy = load_policy(folder_of(name), lora=lora)
    models = (policy.language_model, policy._network.reference.lm)
    before, states = of_policy(policy), [state_of(model) for model in models]
    taps = [LastRow(source=source) for source in ("policy", "reference")]
    readable = [policy.provides(request) for request in taps]
    assert readable == [name not in REFUSING] * 2, policy.why_not(taps[0])
    policy.validate([[2, 3]], 4)
    for lm in models:
        policy._head_ends(lm)
    assert [state_of(model) for model in models] == states
    assert of_policy(policy) == before
    for needs in ([[tap] for tap in taps] + [taps] if all(readable) else []) + [[FullKL()]]:
        assert of_policy(policy, frozenset(needs)) == before
    assert [state_of(model) for model in models] == states


@pytest.mark.parametrize("name", ["falcon", "gpt2", "gptj", "bloom", "falcon-alibi-sdpa"])
def test_a_question_that_fails_midway_puts_the_model_back(name):
    model = made(name, AutoModelForCausalLM)
    ids, mask = torch.arange(12).reshape(2, 6), torch.ones(2, 6, dtype=torch.bool)
    before, state, calls = run(model, ids, mask), state_of(model), []

    def breaks(_, __, output):
        calls.append(1)
        if len(calls) == at:
            raise KeyError("midway")
        return output

    for at in (1, 2, 4):  # noqa: B007  # read by the hook
        calls.clear()
        handle = model.base_model.register_forward_hook(breaks)
        with pytest.raises(KeyError, match="midway"):
            AttentionReader(model).check(VOCAB)
        handle.remove()
        assert state_of(model) == state
        assert torch.equal(run(model, ids, mask), before)


def test_two_models_on_one_configuration_are_both_left_alone():
    first = made("falcon", AutoModelForCausalLM)
    second = type(first)(first.config).eval()
    ids, mask = torch.arange(12).reshape(2, 6), torch.ones(2, 6, dtype=torch.bool)
    before = [run(model, ids, mask) for model in (first, second)]
    AttentionReader(first).check(VOCAB)
    assert all(torch.equal(run(model, ids, mask), was) for model, was in zip((first, second), before, strict=True))


def test_falcon_with_alibi_is_refused_where_eager_attention_is_another_function():
    model = made("falcon-alibi-sdpa", AutoModelForCausalLM)
    with pytest.raises(UnsupportedAttention, match="last hidden states differ from those without the tap by"):
        AttentionReader(model).check(VOCAB)
