"""The measurement of a card: it keeps to its time, loses nothing that was measured, and passes settings on."""

import importlib.util
import json
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest
import torch

from benchmarks import card
from benchmarks.cost import card_measurement
from benchmarks.cost.card_measurement import Budget, measure, summary
from benchmarks.cost.cases import CASES, ON_A_CARD, Case
from benchmarks.cost.engine_processes import VARIANTS, WORKER, PublishedStack, process
from benchmarks.cost.timed_step import PHASES, PREDICTED, Engine

TINY = Case(layers=1, hidden=64, vocab=64, prompts=4, lengths=(3, 5), minibatch_size=2)
STEP = {
    **{"prompts": [[1], [2]], "lengths": [6, 3, 3]},
    **{"cpu_seconds": 2.0, "tokens": 12, "optimizer_steps": 4, "peak_bytes": 7},
    **{"phases": dict.fromkeys(PHASES, 0.25), "peaks": {"generate": 3, "update": 5}},
}


class Clock:
    """A clock that goes on by what a case takes."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Engines that take as many seconds as their case has prompts; case "broken" runs out of memory."""
    clock = Clock()

    @contextmanager
    def engine(case, seconds):
        taken = min(float(case.prompts), seconds)
        clock.now += taken
        if taken < case.prompts or case.vocab == 1:
            raise RuntimeError("worker ended with 1:\nCUDA out of memory" if case.vocab == 1 else "ended with -9")
        yield lambda do, **_: STEP if do == "step" else {"max": 0.5}

    monkeypatch.setattr(card_measurement, "ours", engine)
    return clock


def test_it_keeps_to_its_time_and_writes_what_it_has(clock, tmp_path):
    takes = {"first": 60, "broken": 60, "second": 100, "long": 500, "last": 60}
    cases = {name: Case(prompts=seconds, vocab=1 if name == "broken" else 64) for name, seconds in takes.items()}
    found = measure(cases, 2, Budget(10, clock), None, tmp_path)
    assert clock.now == 600
    of = found["cases"]
    assert [step["sampled_tokens_per_second"] for step in of["first"]["steps"]] == [48, 48]
    assert of["first"]["memory"] == {"predicted_bytes": {"max": 0.5}, "measured_bytes": {"generate": 3, "update": 5}}
    assert (of["first"]["wall_seconds"], of["second"]["wall_seconds"]) == (60, 100)
    assert "out of memory" in of["broken"]["failed"]
    assert of["long"]["skipped"] == "the time was up"
    assert of["last"]["skipped"] == "0 s were left, and the longest case so far took 380 s"
    assert json.loads((tmp_path / "card.json").read_text()) == found
    assert summary(found).splitlines()[0] == "first: 2.00 s per step"


def test_a_case_that_would_take_longer_than_there_is_time_is_not_begun(clock, tmp_path):
    cases = {"a": Case(prompts=50), "b": Case(prompts=50)}
    found = measure(cases, 1, Budget(1, clock), None, tmp_path)
    assert found["cases"]["b"]["skipped"] == "10 s were left, and the longest case so far took 50 s"


def test_the_published_stack_takes_the_first_case_that_it_can(clock, tmp_path, monkeypatch):
    asked = []

    @contextmanager
    def stack(of, variant, case, models, seconds):
        asked.append((variant, case.prompts, seconds))
        yield lambda do, prompts, lengths: {"cpu_seconds": float(len(prompts) + len(lengths))}

    monkeypatch.setattr(card_measurement, "published", stack)
    cases = {"lora": Case(prompts=1, training="lora"), "full": Case(prompts=2), "more": Case(prompts=3)}
    trl = PublishedStack(name="trl", python=sys.executable, variants=("as run", "fused Adam"))
    found = measure(cases, 2, Budget(10, clock), trl, tmp_path)["cases"]
    assert [one[:2] for one in asked] == [("as run", 2), ("fused Adam", 2)]
    assert max(seconds for *_, seconds in asked) < 600
    assert list(found) == ["lora", "full", "more", "trl, as run", "trl, fused Adam"]
    assert found["trl, as run"]["steps"] == [{"cpu_seconds": 5.0}] * 2


def test_four_bit_cases_are_left_out_without_bitsandbytes(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(card_measurement, "find_spec", lambda name: None)
    found = measure({"four-bit": CASES["four-bit"]}, 1, Budget(1, clock), None, tmp_path)
    assert "is not installed" in found["cases"]["four-bit"]["skipped"]


def test_a_worker_is_ended_when_its_time_is_up():
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with process(command, {}, 0.1) as ask, pytest.raises(RuntimeError, match="ended with -9"):
        ask(do="step")


def test_cases_of_a_card_are_known():
    assert set(ON_A_CARD) <= set(CASES)


def test_further_settings_of_a_case_reach_the_loader_and_the_config():
    case = Case(**{**vars(TINY), "loading": {"gradient_checkpointing": True}, "ppo": {"temperature": 0.5}})
    assert case.words.endswith(", gradient_checkpointing True, temperature 0.5")
    engine = Engine(case)
    assert engine.trainer.config.temperature == 0.5
    assert engine.settings.gradient_checkpointing
    assert set(engine.predicted()) == set(PREDICTED) <= set(engine.step()["phases"])
    with pytest.raises(TypeError, match="no_such_setting"):
        Engine(Case(**{**vars(TINY), "loading": {"no_such_setting": True}}))


def test_without_a_card_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(SystemExit):
        card.main([])
    assert "--device cuda needs a CUDA device, and there is none" in capsys.readouterr().err


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_the_published_stack_draws_the_lengths_it_is_given(variant, monkeypatch):
    """Its worker, with a trainer that stands in for TRL's."""
    trl = ModuleType("trl")
    trl.AutoModelForCausalLMWithValueHead = trl.PPOConfig = trl.PPOTrainer = None
    monkeypatch.setitem(sys.modules, "trl", trl)
    spec = importlib.util.spec_from_file_location("published_worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    stack = object.__new__(worker.Stack)
    stack.device, stack.eos, stack.batched = torch.device("cpu"), 0, VARIANTS[variant]["batched"]
    calls = []

    def generate(given, *, max_new_tokens, **settings):
        calls.append(settings)
        if isinstance(given, list):  # as TRL does, without the prompts
            return [torch.full((max_new_tokens,), 7) for _ in given]
        return SimpleNamespace(sequences=torch.cat([given, torch.full((max_new_tokens,), 7)])[None])

    stack.trainer = SimpleNamespace(generate=generate)
    answer = stack.timed_generate([[1, 2], [3]], [2, 4])
    assert answer["lengths"] == [2, 4]
    assert len(calls) == (1 if stack.batched else 2)
    assert all(call.get("suppress_tokens") == ([0] if stack.batched else None) for call in calls)
