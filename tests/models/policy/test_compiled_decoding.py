"""Policies that sample in compiled steps: the same tokens as the others', and one graph for all rollouts."""

import inspect
import shutil

import pytest
import torch
from attention_families import build as family_of
from policies import HIGH, LOW, PROMPTS, build, sample
from transformers import AutoModelForCausalLM

from benchmarks.tasks.model_loading import held_policy
from benchmarks.tasks.model_settings import Loading
from models import LoraSettings, load_policy
from models.passes import fused
from models.passes.fixed_decoder import FixedSteps
from models.passes.sampling import READ_EVERY, CachedDecoder
from models.policy import loading
from models.tiny import save_tiny
from rlhf_core.types import TENSORS, Sequences


def require_same(mine: Sequences, theirs: Sequences) -> None:
    for name in TENSORS:
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name


@pytest.fixture
def uncompiled(monkeypatch):
    """Steps of fixed shapes as they are."""
    monkeypatch.setattr(loading, "compiled", lambda lm: lm)


@pytest.fixture
def graphs(monkeypatch):
    """Every graph that is compiled, by a compiler that leaves it as it is."""
    found, compiled = [], torch.compile

    def backend(graph, _):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda lm, **settings: compiled(lm, backend=backend, **settings))
    return found


@pytest.fixture
def unchecked(monkeypatch):
    """Shape checks are Python that no compiler takes in."""
    monkeypatch.setattr(fused.VocabularyHead, "forward", inspect.unwrap(fused.VocabularyHead.forward))
    monkeypatch.setattr(fused._InParts, "forward", staticmethod(inspect.unwrap(fused._InParts.forward)))


WARNED = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's making


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("kind", ["full", "lora", "adapter"])
def test_the_tokens_are_the_same(family, kind, folders, monkeypatch):
    """Ragged prompts, EOS, minimum lengths; as on a card too, where rows that have ended go on for a while."""
    ordinary = build(folders, family, kind)
    fixed = build(folders, family, kind, compile_decoding=True)
    require_same(sample(fixed), expected := sample(ordinary))
    monkeypatch.setitem(READ_EVERY, "cpu", 8)
    require_same(sample(fixed), expected)
    assert len({len(row) for row in expected.responses()}) > 2
    alone = [4]
    require_same(*(sample(one, [PROMPTS[4]], LOW[alone], HIGH[alone], temperature=0.7) for one in (fixed, ordinary)))
    require_same(*(sample(one, temperature=0.0) for one in (fixed, ordinary)))


@pytest.mark.usefixtures("uncompiled")
def test_rows_that_have_ended_may_pass_the_context(folders):
    prompts, low, high = [[5], [4] * 60], torch.tensor([20, 0]), torch.tensor([20, 4])
    ordinary, fixed = (build(folders, "gpt2", "full", compile_decoding=compiled) for compiled in (False, True))
    require_same(*(sample(one, prompts, low, high) for one in (fixed, ordinary)))


def moved(policy, seed: int) -> None:
    """New weights in place, as an optimizer leaves them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@WARNED
@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_one_graph_serves_every_rollout_and_reads_the_weights_of_now(folders, graphs):
    ordinary, fixed = (build(folders, "gpt2", "adapter", compile_decoding=x) for x in (False, True))
    for seed in range(2):
        require_same(sample(fixed), expected := sample(ordinary))
        for policy in (ordinary, fixed):  # with the adapter off and on again, and a backward pass
            reference = policy.reference_logprobs(expected)
            loss = (policy.evaluate(expected, frozenset()).logprobs - reference).square().sum()
            loss.backward()
            moved(policy, seed)
    require_same(sample(fixed, PROMPTS[2:], LOW[2:], HIGH[2:]), sample(ordinary, PROMPTS[2:], LOW[2:], HIGH[2:]))
    assert len(graphs) == 1
    twice = [PROMPTS * 2, LOW.repeat(2), HIGH.repeat(2)]  # more rows than the graph has
    require_same(sample(fixed, *twice), sample(ordinary, *twice))
    assert len(graphs) == 2


@WARNED
@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_packed_4_bit_weights_go_into_the_graph(folders, graphs):
    settings = {"lora": LoraSettings(rank=4), "four_bit": True}
    ordinary, fixed = (load_policy(folders["llama", "model"], compile_decoding=x, **settings) for x in (False, True))
    for seed in range(2):
        require_same(sample(fixed), sample(ordinary))
        moved(ordinary, seed)
        moved(fixed, seed)
    assert len(graphs) == 1


@WARNED
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.usefixtures("unchecked")
def test_the_compiler_of_the_cpu_draws_the_same_tokens(tmp_path, monkeypatch):
    """With C++ code of its own, from a 1-layer model, as to compile takes seconds a layer."""
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    folder = save_tiny(tmp_path, "gpt2", n_layers=1)
    ordinary, fixed = (load_policy(folder, compile_decoding=compiled) for compiled in (False, True))
    for seed in range(2):
        require_same(sample(fixed), sample(ordinary))
        moved(ordinary, seed)
        moved(fixed, seed)


def test_a_model_that_cannot_is_refused_when_it_is_loaded(tmp_path):
    save_tiny(tmp_path, "llama", vocab_size=40)
    family_of("mistral", AutoModelForCausalLM, eos_token_id=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="MistralForCausalLM cannot decode in steps of fixed shapes: .*Sliding"):
        load_policy(str(tmp_path), compile_decoding=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_command_line_reaches_the_policy(folders, compiled):
    policy = held_policy(Loading(compile_decoding=compiled), folders["gpt2", "model"], reward=None)
    made = policy._network.decoder
    assert isinstance(made.__self__, FixedSteps) if compiled else made.func is CachedDecoder
