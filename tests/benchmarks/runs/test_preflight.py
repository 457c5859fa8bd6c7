"""A comparison looked at before it is run."""

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from prepared import prepared
from table_task import PPO, TableTask, settings

from benchmarks.check import main
from benchmarks.runs import preflight
from benchmarks.runs.comparison import ComparisonSettings, Panel, plan, ppo_of, run_comparison
from benchmarks.runs.contracts import require_contract
from benchmarks.runs.preflight import cost, findings, memory_settings, on_the_cpu
from benchmarks.tasks.definitions import PositiveGeneration
from benchmarks.tasks.model_settings import Loading
from models.weights.lora_settings import LoraSettings
from redistributors import REDISTRIBUTORS, Sparse
from rlhf_core.config import PPOConfig


def looked_at(asked, **ppo):
    return {found.about: found for found in findings(asked, TableTask(), ppo, 24.0)}


def test_a_good_comparison_is_told_arm_by_arm_and_nothing_is_written(tmp_path):
    found = looked_at(settings(tmp_path), learning_rate=0.5)
    assert not any(finding.wrong for finding in found.values())
    assert found["plan"].said == "2 arms x 2 seeds = 4 runs of 2 steps; task toy"
    assert "learning_rate 0.5, " in found["settings"].said
    assert "is free" in found["folder"].said
    assert found["arm uniform"].said == "can run; needs nothing but the score"
    assert re.fullmatch(r"8 to train on, 3 held out; 1\.\d tokens on average, 2 at most", found["prompts"].said)
    assert "language model" in found["memory"].said
    assert list(tmp_path.iterdir()) == []


def test_a_control_that_would_repeat_an_arm_is_told(tmp_path):
    found = looked_at(settings(tmp_path, redistributors="sparse", controls="sparse@lam=1"), lam=1.0)
    planned = "1 arm x 2 seeds = 2 runs of 2 steps; task toy; without the control sparse-lam1, which would repeat"
    assert found["plan"].said.startswith(planned)


def test_what_would_stop_the_comparison_is_told_for_each_arm(tmp_path):
    found = looked_at(settings(tmp_path, redistributors="sparse,abc", eval_prompts=3))
    assert not found["arm sparse"].wrong
    assert found["arm abc"].wrong
    found = looked_at(settings(tmp_path, eval_prompts=4))
    assert not found["arm sparse"].wrong
    assert found["prompts"].said == "eval_prompts 4 exceed the task's 3 held-out prompts"


@dataclass(frozen=True)
class Half:
    """Declares that it conserves the score, and places half of it."""

    share: float = 0.5
    needs: ClassVar = frozenset()
    causal: ClassVar = True
    conserving: ClassVar = True

    def __call__(self, rollout):
        return self.share * Sparse()(rollout)


def test_a_method_from_elsewhere_is_tried_against_the_contract(tmp_path, capsys):
    methods = f"sparse,{__name__}.Half,{__name__}.Half(share=1),segment(inner={__name__}.Half())"
    found = list(looked_at(settings(tmp_path, redistributors=methods)).items())
    arms = [finding for about, finding in found if about.startswith("arm ")]
    assert [finding.wrong for finding in arms] == [False, True, False, True]
    assert "contract" not in arms[0].said
    assert arms[1].said.startswith("breaks the contract of a redistributor (redistributors.check): one token: ")
    assert "; sum: rows miss the score by up to" in arms[1].said
    assert arms[2].said == "can run; needs nothing but the score; keeps the contract of a redistributor"
    assert capsys.readouterr().out == ""


def test_a_comparison_refuses_a_method_that_breaks_the_contract_before_any_run(tmp_path):
    asked = settings(tmp_path, redistributors=f"sparse,segment(inner={__name__}.Half())")
    with pytest.raises(ValueError, match=r"Half.*: breaks the contract of a redistributor .*; sum: rows miss the scor"):
        run_comparison(asked, TableTask(), PPO, [Panel()])
    assert not (tmp_path / "out").exists()


def test_a_broken_contract_is_a_warning_where_checks_warn(tmp_path):
    (run,) = plan(
        settings(tmp_path, redistributors=f"{__name__}.Half", seeds=1),
        TableTask(),
        Panel(),
        ppo_of(TableTask(), {"first_step_checks": "warn"}),
    )
    with pytest.warns(RuntimeWarning, match=r"Half: breaks the contract of a redistributor"):
        require_contract(run.arm, run.config)


def test_a_folder_of_another_comparison_is_told(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    found = looked_at(settings(tmp_path))
    assert found["folder"].wrong
    assert "holds no run.json" in found["folder"].said


def test_a_comparison_that_has_begun_is_told_to_go_on(tmp_path, in_threads):
    asked = settings(tmp_path, seeds=1)
    run_comparison(asked, TableTask(), {}, [Panel()])
    assert "would go on" in looked_at(asked)["folder"].said
    other = looked_at(replace(asked, steps=3))["folder"]
    assert other.wrong
    assert "steps" in other.said


def test_models_that_cannot_be_loaded_end_it(tmp_path):
    asked = ComparisonSettings(task="positive_generation", models=str(tmp_path), out=str(tmp_path / "out"))
    found = list(findings(asked, asked.make_task(), {}, 24.0))
    assert found[-1].about == "models"
    assert found[-1].wrong


def test_models_are_loaded_on_the_cpu_in_full_width():
    moved = {"device": "cuda", "reward_device": "cuda:1"}
    held = Loading(**moved, four_bit=True, lora=LoraSettings(rank=4), optimizer="paged_adamw_8bit")
    task = on_the_cpu(PositiveGeneration(loading=held))
    assert task.loading == Loading(lora=LoraSettings(rank=4))
    copied, whole = replace(held, sampling_dtype="bfloat16"), Loading(device="cuda", tf32=True, autocast="bfloat16")
    assert on_the_cpu(PositiveGeneration(loading=copied)).loading == Loading(lora=LoraSettings(rank=4))
    assert on_the_cpu(PositiveGeneration(loading=whole)).loading == Loading(autocast="bfloat16")


def test_tf32_is_refused_where_it_changes_nothing():
    with pytest.raises(ValueError, match="tf32 changes nothing on device 'cpu'"):
        Loading(tf32=True)


@pytest.mark.parametrize(("place", "wrong"), [(None, True), ("cuda:1", False), ("cpu", False)])
def test_memory_of_one_card_does_not_stop_models_on_two_devices(place, wrong, tmp_path):
    """The models are not loaded there: a comparison is looked at on the CPU."""
    models, loading = str(prepared(tmp_path / "models")), Loading(device="cuda", reward_device=place)
    one = {"out": str(tmp_path / "out"), "redistributors": "sparse", "eval_prompts": 4}
    asked = ComparisonSettings(task="positive_generation", models=models, loading=loading, **one)
    hardly_more_than_the_context = 0.7501
    *_, memory = findings(asked, asked.make_task(), {"max_length": (8, 9)}, hardly_more_than_the_context)
    assert memory.about == "memory"
    assert memory.wrong == wrong
    assert (f"the reward model is on {place}" in memory.said) != wrong


def test_cost_counts_responses_tokens_and_passes(tmp_path):
    asked = settings(tmp_path)
    (run, *_) = plan(asked, TableTask(), Panel(), ppo_of(TableTask(), PPO))
    # 2 steps x 4 responses = 8; prompts of 1.5 tokens and responses of 4.5 = 48 tokens; 1 epoch of 2 minibatches
    said = cost([run], mean_prompt=1.5)
    assert said.startswith("8 responses, about 48 tokens with their prompts, 4 optimizer steps. The work equals")
    assert "over about 336 tokens" in said


def test_memory_is_predicted_for_the_settings_of_the_comparison():
    held = Loading(dtype="bfloat16", four_bit=True, lora=LoraSettings(rank=8), reward_tokens=99)
    config = PPOConfig(rollout_batch_size=8, minibatch_size=2, max_length=(4, 9))
    needs = REDISTRIBUTORS["abc"]().needs | REDISTRIBUTORS["sparse"]().needs
    made = memory_settings(held, config, 12, needs, 48.0)
    assert (made.dtype, made.four_bit, made.training, made.lora_rank) == ("bfloat16", "both", "lora", 8)
    assert (made.prompt_tokens, made.response_tokens, made.rollout_batch_size, made.minibatch_size) == (12, 9, 8, 2)
    assert (made.reward_micro_batch_tokens, made.evidence, made.card_gib) == (99, "reward", 48.0)
    assert memory_settings(Loading(), config, 12, REDISTRIBUTORS["abc-d"]().needs, 48.0).evidence == "decoder"
    assert memory_settings(Loading(), config, 12, frozenset(), 48.0).training == "full"
    copied = memory_settings(replace(held, sampling_dtype="bfloat16"), config, 12, needs, 48.0)
    assert (made.autocast, made.sampling_dtype, copied.sampling_dtype) == ("none", "none", "bfloat16")
    assert memory_settings(Loading(autocast="bfloat16"), config, 12, needs, 48.0).autocast == "bfloat16"


@pytest.fixture
def table_comparison(monkeypatch):
    monkeypatch.setattr(ComparisonSettings, "make_task", lambda self: TableTask())


def test_the_command_says_that_it_can_run_or_what_stops_it(tmp_path, capsys, table_comparison):
    words = ["--eval_prompts", "3", "--out", str(tmp_path / "out")]
    main([*words, "--redistributors", "sparse"])
    assert capsys.readouterr().out.endswith("The comparison can run.\n")
    with pytest.raises(SystemExit) as ended:
        main([*words, "--redistributors", "sparse,abc"])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "cannot: " in said.out
    assert said.err.endswith("error: the comparison cannot run; lines marked 'cannot' above: 1\n")
    with pytest.raises(SystemExit):
        main([*words, "--redistributors", "sparse,uniform", "--eval_prompts", "4"])
    assert capsys.readouterr().out.count("cannot: eval_prompts 4 exceed") == 1
    with pytest.raises(SystemExit):
        main([*words, "--redistributors", "abc,segment(inner=abc)"])
    assert "cannot: for the same reason as arm abc\n" in capsys.readouterr().out


def test_a_finding_names_settings_as_they_are_typed(tmp_path, capsys, table_comparison, monkeypatch):
    found = preflight.Finding(about="models", said="use dtype='float32', or lora=LoraSettings()", wrong=True)
    monkeypatch.setattr(preflight, "findings", lambda *_: [found])
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "out")])
    said = " ".join(capsys.readouterr().out.split())
    assert said == "models cannot: use --loading.dtype float32, or --loading.lora '{}'"


def test_all_that_is_wrong_by_name_is_told_in_one_go(tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    words = ["--policy", f"{nowhere}/p", "--data", f"{nowhere}.jsonl", "--reward", "no_such_module:reward"]
    for methods, said in (
        ("magic,spars", ["no redistributor 'magic'", "no redistributor 'spars'; did you mean 'sparse'?"]),
        (f"uniform(beta=7),{__name__}.Hlf", ["beta is the share", "has no class Hlf; did you mean 'Half'?"]),
        ("sparse@lam=7,sparse@gamma=7", ["arm sparse@lam=7: ", "arm sparse@gamma=7: "]),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--redistributors", methods])
        assert ended.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        files = [
            f"--policy {nowhere}/p: there is no folder",
            f"--data {nowhere}.jsonl: no file",
            "--reward no_such_mod",
        ]
        assert len(lines) == len(said) + len(files)
        assert all(part in line for part, line in zip([*said, *files], lines, strict=True)), lines
