"""The throughput and evidence benchmarks: what they count, that they compare equals, and that they run."""

import csv
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import evidence_cost, levers, sampling_speed, throughput
from benchmarks.cost import engine_processes, evidence_timing, lever_timing, sampling_timing, step_timing
from benchmarks.cost.cases import CASES, Case
from benchmarks.cost.gpt2_sizes import SIZES
from benchmarks.cost.machine_floor import Rates, Work, flop_counter
from benchmarks.cost.step_timing import TimedCase, Timing, engines_table, phases_table, require_same
from benchmarks.cost.timed_step import PHASES, Engine, built
from rlhf_core.trainer import PPOTrainer

TINY = Case(layers=2, hidden=64, vocab=64, prompts=4, lengths=(3, 5), minibatch_size=2)


def test_the_least_time_is_the_slower_of_arithmetic_and_memory():
    rates = Rates(flops=100.0, bytes=10.0)
    assert Work(flops=200.0, bytes=10.0).least(rates) == 2
    assert Work(flops=200.0, bytes=50.0).least(rates) == 5


def test_attention_on_a_cpu_is_counted():
    q, k, v = (torch.randn(2, 3, 5, 16, requires_grad=True) for _ in range(3))
    product = 2 * (2 * 3 * 5 * 5 * 16)
    with flop_counter() as counter:
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        assert counter.get_total_flops() == 2 * product
        out.sum().backward()
    assert counter.get_total_flops() == (2 + 5) * product  # the backward pass makes the weights again


def test_a_step_is_counted_and_timed_by_phase():
    engine = Engine(TINY)
    counted, work = engine.counted_step()
    assert tuple(work) == PHASES
    weights, step = engine.weights, engine.step()
    prompts, tokens = sum(map(len, engine.prompts(0))), counted["tokens"]
    assert counted["optimizer_steps"] == 4 * 2
    # beside attention: 2 operations a weight and token; embeddings are looked up, the head is on responses only
    head, positions = 64 * 64, 1024 * 64
    trunk = weights - head - positions
    passes = work["log-probabilities"].flops / 2
    assert passes == pytest.approx(2 * trunk * (prompts + tokens) + 2 * head * tokens, rel=0.35)  # padding, attention
    assert work["update"].flops == pytest.approx(4 * 3 * passes, rel=0.25)
    assert work["optimizer"].flops == 0 < work["optimizer"].bytes
    assert set(step["phases"]) == set(PHASES)
    assert sum(step["phases"].values()) <= step["cpu_seconds"]
    assert len(step["lengths"]) == 4


def test_engines_that_do_other_work_are_refused():
    done = {"tokens": 40, "optimizer_steps": 8}
    require_same(done, done, done, "other")
    with pytest.raises(RuntimeError, match="optimizer_steps is 8 in ours and 9 in other: not the same work"):
        require_same(done, {**done, "optimizer_steps": 9}, done, "other")
    same = {"logprob": -1.0, "score": 2.0}
    require_same(same, {**same, "score": 2.0001}, same, "other", by=1e-3)
    with pytest.raises(RuntimeError, match=r"score is 2.0 in ours and 2.1 in other: not the same work"):
        require_same(same, {**same, "score": 2.1}, same, "other", by=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_every_case_can_be_built_and_is_quiet_before_it_learns(name, monkeypatch):
    case = CASES[name]
    monkeypatch.setattr("models.policy.loading.compiled", lambda lm: lm)  # no compiler takes in the tests' type checks
    if case.four_bit != "none":
        pytest.importorskip("bitsandbytes")
    small = replace(case, layers=1, hidden=64, vocab=64, prompts=4, lengths=(3, 5), minibatch_size=2)
    noise = Engine(small).noise()
    exact = 1e-5 if (case.dtype, case.autocast) == ("float32", "none") else 0.1
    assert noise["mean"] <= noise["max"] < exact <= noise["allowed"]
    assert noise["reference"] == 0
    assert noise["drawn mean"] <= noise["drawn max"] < exact


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def step(seconds: float, tokens: int = 10) -> dict:
    phases = dict.fromkeys(PHASES, seconds / len(PHASES))
    return {"cpu_seconds": seconds, "phases": phases, "peak_bytes": 2**30, "tokens": tokens}


def test_ratios_are_to_the_step_beside():
    mine = Timing(engine="ours", pairs=((step(1.0), step(2.0)), (step(4.0), step(4.0))))
    theirs = Timing(engine="theirs", pairs=((step(2.0), step(1.0)), (step(12.0, tokens=20), step(4.0))))
    assert theirs.ratios() == [2.0, 3.0]
    counted = {
        "tokens": 10,
        "floor": dict.fromkeys(PHASES, 0.0) | {"update": 0.5},
        "rates": {"flops": 1e9, "bytes": 1e9},
    }
    found = {"a": TimedCase(case=TINY, timings=(mine, theirs), counted=counted, noise={})}
    table = engines_table(found)
    assert table.rows[0][:4] == ("a", "ours", "1.00–2.50–4.00", "0.500–0.750–1.00")
    assert table.rows[1][3:] == ("2.00–2.50–3.00", (2 / 0.5 + 12 / 1.0) / 2, 1.0, (10 / 2 + 20 / 12) / 2)
    of = {row[1]: row[2:] for row in phases_table(found).rows}
    assert of["score"][2] is None
    assert of["update"] == pytest.approx((2.5 / 7, (70 / 1 + 70 / 4) / 2, (1 / 7 / 0.5 + 4 / 7 / 0.5) / 2))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--cases", "[nothing]"], "--cases must be of 'paper', 'minibatch-16', 'long'"),
        (["--repeats", "0"], "repeats must be 1 or more"),
        (["--against", "trl-0.7.4", "--published_python", sys.executable, "--cases", "[bf16]"], "float32 and full"),
        (["--against", "trl-0.7.4", "--published_python", sys.executable, "--sweep", "true"], "leave out --against"),
        (["--variants", "[fused]"], "--variants must be of 'as run', 'fused Adam'"),
        (["--cases", "[tf32]"], "changes nothing on a CPU"),
        (["--noise", "true", "--sweep", "true"], "leave out --sweep and --against"),
        (["--against", "trl-0.7.4"], "published_stack/install.sh DIR, then give --published_python"),
    ],
)
def test_settings_that_cannot_be_say_what_to_do(flags, words, capsys):
    with pytest.raises(SystemExit):
        throughput.main(flags)
    assert words in " ".join(capsys.readouterr().err.split())


@contextmanager
def in_this_process(case):
    """What a worker answers, without starting one, which takes seconds."""
    engine = built(json.loads(json.dumps(asdict(replace(case, keep_freed_memory=False)))))
    yield lambda do, **request: json.loads(json.dumps(getattr(engine, do)(**request)))


def test_noise_is_shown_without_timing_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(step_timing, "ours", in_this_process)
    for name, changes in (("tiny", {}), ("autocast", {"autocast": "bfloat16"})):
        monkeypatch.setitem(CASES, name, replace(TINY, **changes))
    throughput.main(["--cases", "[tiny,autocast]", "--noise", "true", "--out", str(tmp_path)])
    exact, rounded = rows_of(tmp_path / "noise.csv")
    assert (exact["computes in"], rounded["computes in"]) == ("float32", "float32, bfloat16 autocast")
    assert (float(exact["allowed"]), float(rounded["allowed"])) == (1e-4, 1.0)
    assert 0 < float(exact["|drawn - evaluated|, max"]) < 1e-5
    assert not (tmp_path / "table.csv").exists()


@pytest.mark.slow
def test_the_command_writes_both_tables(tmp_path, monkeypatch, capsys):
    """Counted in this process, timed in one of its own."""
    counting_and_timing = iter([in_this_process(TINY), step_timing.ours(TINY)])
    monkeypatch.setattr(step_timing, "ours", lambda case: next(counting_and_timing))
    monkeypatch.setitem(CASES, "tiny", TINY)
    throughput.main(["--cases", "[tiny]", "--repeats", "2", "--out", str(tmp_path)])
    rows = rows_of(tmp_path / "table.csv")
    assert [row["engine"] for row in rows] == ["ours"]
    assert [row["phase"] for row in rows_of(tmp_path / "phases.csv")] == list(PHASES)
    (noise,) = rows_of(tmp_path / "noise.csv")
    assert 0 < float(noise["|log ratio|, max"]) < float(noise["allowed"]) == 1e-4
    with pytest.raises(SystemExit):
        throughput.main(["--cases", "[tiny]", "--out", str(tmp_path)])
    assert "is not empty; choose another --out, or pass --overwrite true" in capsys.readouterr().err


def test_a_sweep_compares_with_the_first_of_each_kind(monkeypatch):
    """Seconds grow with the prompts, operations with their square; neither with the lengths."""

    @contextmanager
    def engine(case):
        answers = {
            "count": {"flops": case.prompts**2, "tokens": case.prompts},
            "step": {"cpu_seconds": case.prompts, "tokens": 1},
        }
        yield lambda do: answers[do]

    monkeypatch.setattr(step_timing, "ours", engine)
    rows = step_timing.sweep_tables(repeats=2, device="cpu")["sweep"].rows
    assert rows[0] == ("prompts", 16, 16e3, 1.0, 1.0)
    assert rows[2] == ("prompts", 64, 64e3, 4.0, 4.0)
    assert [row[3:] for row in rows if row[0] == "response tokens"] == [(1.0, 1.0)] * 6


@pytest.mark.parametrize("seconds", [0.0, 0.5])  # it may have ended before it is asked, or after
def test_a_worker_that_dies_says_why(seconds):
    command = [sys.executable, "-c", "raise SystemExit('prompts_ cannot be')"]
    with engine_processes.process(command, {}) as ask:
        time.sleep(seconds)
        with pytest.raises(RuntimeError, match=r"ended with 1:[\s\S]*prompts_ cannot be"):
            ask(do="step")


@pytest.mark.slow
def test_evidence_costs_are_measured(tmp_path):
    sizes = ["--tokens", "[32]", "--rows", "[2]", "--layers", "2", "--seconds", "0"]
    evidence_cost.main([*sizes, "--step_tokens", "[]", "--out", str(tmp_path / "passes")])
    rows = {row["evidence"]: row for row in rows_of(tmp_path / "passes" / "table.csv")}
    assert set(rows) == {"abc", "prefix-difference", "abc-d", "abc-d2"}
    more = {name: float(row["FLOPs"].rstrip(" %")) for name, row in rows.items()}
    assert min(more.values()) >= 0
    assert more["abc"] < more["abc-d"]


@pytest.mark.slow
def test_evidence_costs_a_step_less_than_its_pass(tmp_path):
    sizes = ["--tokens", "[32]", "--step_tokens", "[32]", "--rows", "[1]", "--layers", "1", "--seconds", "0"]
    evidence_cost.main([*sizes, "--redistributors", "[abc-d]", "--out", str(tmp_path)])
    more = {row["pass"]: float(row["FLOPs"].rstrip(" %")) for row in rows_of(tmp_path / "table.csv")}
    assert 0 < more["step"] < more["log-probabilities"]


def test_steps_that_do_other_work_are_not_compared(monkeypatch):
    models = evidence_timing.models(layers=1, context=8)
    take = evidence_timing.step("sparse", models, rows=1, tokens=8)
    take()
    figures = {"length": 4.0, "skipped_minibatches": 0.0, "refused_minibatches": 0.0}
    for name in figures:
        monkeypatch.setattr(PPOTrainer, "step", lambda *_, other=name: figures | {other: 1.0})
        with pytest.raises(RuntimeError, match="sparse"):
            take()


def test_samplers_draw_the_same_tokens_or_are_not_compared(tmp_path, monkeypatch):
    monkeypatch.setitem(sampling_speed.LENGTHS, "short", (2, 5))
    samplers = sampling_timing.Samplers(SIZES["small"], 3, (2, 5))
    assert [len(row) for row in samplers.ours()] == samplers.lengths.tolist()
    samplers.require_same_tokens()
    monkeypatch.setattr(samplers, "ours", lambda: [[1], [2], [3]])
    with pytest.raises(RuntimeError, match="one by one, with attentions draws other tokens than ours"):
        samplers.require_same_tokens()
    arguments = ["--size", "small", "--prompts", "3", "--lengths", "[short]", "--repeats", "2", "--out", str(tmp_path)]
    sampling_speed.main(arguments)
    against = [row["against ours"] for row in rows_of(tmp_path / "table.csv")]
    assert against == ["one by one, with attentions", "left-padded batch", "ours again"]
    with pytest.raises(SystemExit):
        sampling_speed.main(["--lengths", "[medium]"])


def test_levers_are_compared_with_what_does_the_same(tmp_path):
    for name, _, ours, theirs in lever_timing.levers("small"):
        mine, other = ours(), theirs()
        if isinstance(mine, torch.Tensor):
            torch.testing.assert_close(mine, other, msg=name)
    levers.main(["--size", "small", "--seconds", "0", "--out", str(tmp_path)])
    assert len(rows_of(tmp_path / "table.csv")) == 10


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_kept():
    """In a process of its own: pages fetched from the system for 64 MiB that were had before, without and with."""
    code = """
import resource, torch
from rlhf_core.run.freed_memory import keep_freed_memory
def faults():
    torch.ones(2**24).sum()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(2**24).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
left = faults()
assert keep_freed_memory()
faults()  # the first few buffers are still new
print(left, faults())
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    left, kept = map(int, done.stdout.split())
    assert 3 * kept < left
