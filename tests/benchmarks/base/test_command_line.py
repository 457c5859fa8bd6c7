"""The command line: flags, presets by name, short help, and errors that name the flag, the value and the way out."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from benchmarks.base.command_line import called_as, command_line, parse, refusals
from benchmarks.base.flag_errors import as_typed
from benchmarks.base.flag_help import short_help
from benchmarks.base.flags import flags_of
from benchmarks.base.presets import PRESETS, config_path, preset_names, presets_for
from benchmarks.compare import SCRIPT
from models.weights.lora_settings import LoraSettings
from rlhf_core.config import KLConfig, PPOConfig
from rlhf_core.names import OTHER_WORDS


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inside."""

    rate: float = 0.1
    """How fast. Then more about it."""
    lora: LoraSettings | None = None
    """An adapter."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Do something."""

    task: Literal["toy", "dialogue"] = "toy"
    """Which task. The others are elsewhere."""
    steps: int = 3
    """How many steps."""
    seeds: int | list[int] = 5
    """How many seeds, or which."""
    out: str = "runs"
    """Where to."""
    span: tuple[int, int] = (1, 2)
    """From, to."""
    inner: Inner = Inner()
    """Nested."""

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}")


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Read folders."""

    folders: list[str]
    """The folders to read."""
    out: str
    """Where to write."""


def refused(capsys, call, *words):
    """The one line that a call with bad words ends with."""
    with pytest.raises(SystemExit) as ended:
        call(*words)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


def with_ppo(*words):
    parser = command_line(Settings, "benchmarks.x")
    parser.add_class_arguments(PPOConfig, "ppo", skip={"seed"}, instantiate=False)
    return parser.parse_args(words)


def test_flags_beat_the_file_and_the_file_beats_the_defaults(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("steps: 7\ninner: {rate: 0.5}\nspan: [4, 9]\n")
    settings = parse(Settings, "x", ["--config", str(file), "--inner.rate", "2"])
    assert settings == Settings(steps=7, inner=Inner(rate=2.0), span=(4, 9))
    assert parse(Settings, "x", [f"--config={file}"], defaults={"out": "b"}).out == "b"


def test_flags_may_be_written_with_hyphens_and_values_are_left_alone():
    parser = command_line(PPOConfig, "benchmarks.x")
    assert parser.parse_args(["--learning-rate", "0.5", "--min-length=2"]).learning_rate == 0.5
    assert parse(Settings, "x", ["--out=a-b"]).out == "a-b"
    assert parse(Settings, "x", ["--out", "a-b"]).out == "a-b"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--stepz 3", "--stepz: did you mean --steps?"),
        ("--step 3", "--step: did you mean --steps?"),
        ("--rate 3", "--rate: did you mean --inner.rate?"),
        ("--inner.lora.rnk 3", "--inner.lora.rnk: did you mean --inner.lora.rank?"),
        ("--inner.lora.lora_alpha 3", "--inner.lora.lora_alpha: did you mean --inner.lora.alpha?"),
        ("--zzzz 3", "--zzzz: there is no such setting; --help all lists them"),
        ("-x", "-x: there is no such setting; --help all lists them"),
        ("stray", "'stray': not expected here; settings are given as --NAME VALUE (--help lists them)"),
        ("--steps many", "--steps: must be an integer, got 'many'"),
        ("--steps=many", "--steps: must be an integer, got 'many'"),
        ("--steps", "--steps: the value is missing; it must be an integer"),
        ("--steps 0", "--steps must be 1 or more, got 0"),
        ("--task tooy", "--task: must be one of toy, dialogue, got 'tooy'; did you mean 'toy'?"),
        ("--seeds a,b", "--seeds: must be an integer or a list of integers, got 'a,b'"),
        ("--span 8", "--span: must be 2 integers, as '[A, B]', got '8'"),
        ("--inner.lora.rank x", "--inner.lora.rank: must be an integer, got 'x'"),
        ("--inner.lora.rank 0", "--inner.lora.rank and alpha must be positive whole numbers, got 0 and 32"),
        ("--inner 3", "--inner: must be settings, as '{name: value}', got '3'"),
        ("--inner {rate:x}", "--inner: must be settings, as '{name: value}', got '{rate:x}'"),
    ],
)
def test_bad_input_is_one_line_with_the_flag_the_value_and_the_way_out(words, said, capsys):
    line = refused(capsys, lambda *given: parse(Settings, "benchmarks.x", given), *words.split())
    assert line == f"python -m benchmarks.x: error: {said}"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ppo.lr", "--ppo.learning_rate"),
        ("lr", "--ppo.learning_rate"),
        ("learning_rate", "--ppo.learning_rate"),
        ("ppo.learning_rte", "--ppo.learning_rate"),
        ("ppo.kl_coef", "--ppo.kl.init_coef"),
        ("ppo.kl.kl_coef", "--ppo.kl.init_coef"),
        ("ppo.max_new_tokens", "--ppo.max_length '[n, n]'"),
        ("ppo.use_score_scaling", "--ppo.score.scaling running_std"),
        ("ppo.early_stopping", "--ppo.target_kl, which is off at None"),
    ],
)
def test_a_name_of_another_library_is_answered_with_the_flag(name, said, capsys):
    assert refused(capsys, with_ppo, f"--{name}", "1").endswith(f": error: --{name}: did you mean {said}?")


@pytest.mark.parametrize("name", OTHER_WORDS)
def test_every_name_of_another_library_is_answered_in_flags(name, capsys):
    line = refused(capsys, with_ppo, f"--ppo.{name}", "1")
    assert "did you mean" in line
    assert "Config" not in line


def test_settings_of_another_library_stay_known_to_the_classes():
    assert PPOConfig.__other_words__ is OTHER_WORDS
    assert "kl_coef" in KLConfig.__other_words__


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz: 3", "stepz (in the file of --config): did you mean --steps?"),
        ("inner: {rat: 3}", "inner.rat (in the file of --config): did you mean --inner.rate?"),
        ("steps: many", "--steps: must be an integer, got 'many'"),
        ("hello", "must be a YAML file of settings"),
        ("steps: [3", "must be a YAML file of settings"),
        (b"\xff\xfe", "must be a YAML file of settings"),
    ],
)
def test_a_bad_file_of_settings_is_refused(text, said, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = refused(capsys, lambda *given: parse(Settings, "benchmarks.x", given), "--config", str(file))
    assert said in line
    assert line.startswith("python -m benchmarks.x: error: ")


def test_presets_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "demo" in preset_names()
    assert config_path("demo") == PRESETS / "demo.yaml"
    Path("own.yaml").write_text("steps: 4\n")
    assert config_path("own.yaml") == Path("own.yaml")
    assert parse(Settings, "x", ["--config", "own.yaml"]).steps == 4
    with pytest.raises(ValueError, match=r"no preset and no file 'dem'; did you mean 'demo'\? Presets: demo, "):
        config_path("dem")


def test_a_reason_does_not_begin_with_a_call_that_no_user_of_a_command_made(capsys):
    with pytest.raises(SystemExit):
        command_line(Settings, "benchmarks.x").refuse(ValueError("fit: runs/x holds a run with other settings"))
    assert capsys.readouterr().err == "python -m benchmarks.x: error: runs/x holds a run with other settings\n"


def test_help_offers_only_presets_that_a_command_can_take():
    known = {"task", "redistributors", "controls", "seeds", "steps", "processes", "ppo"}
    assert presets_for(known) == ("demo", "positive_generation_cpu")
    assert presets_for({"steps", "out"}) == ()
    assert "dialogue_cpu" in short_help(SCRIPT.parser(), {})
    assert "take settings from a YAML file; flags" in " ".join(short_help(command_line(Settings, "x"), {}).split())


def test_an_unknown_preset_ends_with_the_list(capsys):
    line = refused(capsys, lambda *given: parse(Settings, "benchmarks.x", given), "--config", "nothing")
    assert all(name in line for name in preset_names())


def test_words_without_a_flag_fill_one_field(capsys):
    def call(*words):
        return parse(Folders, "benchmarks.x", words, positional="folders")

    assert call("a", "b", "--out", "c") == Folders(folders=["a", "b"], out="c")
    assert refused(capsys, call, "--out", "c").endswith("FOLDERS must be given; --help lists the settings")
    assert refused(capsys, call, "a").endswith("--out must be given; --help lists the settings")


def printed(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        parse(Settings, "benchmarks.x", words, sections={"where it goes": ("out",)})
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_is_short_and_grouped_and_the_rest_is_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    short = printed(capsys, "--help")
    for words in ("usage: python -m benchmarks.x", "Do something.", "where it goes:", "--out TEXT", "--inner.*"):
        assert words in short
    assert "(default: 3)" in short
    assert "elsewhere" not in short
    assert "--inner.rate" not in short
    full = printed(capsys, "--steps", "4", "--help", "all")
    for words in ("The others are elsewhere.", "--inner.rate NUMBER", "Then more about it.", "--inner.lora.rank INT"):
        assert words in full
    assert full.count("--inner.lora.rank") == 1


@pytest.mark.parametrize("columns", ["20", "80", "200"])
def test_help_fits_the_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    text = printed(capsys, "--help")
    lines = [line for line in text.splitlines()[1:] if len(line.split()) > 1]  # a word alone is never broken
    assert max(map(len, lines)) <= max(int(columns), 40)
    assert "\x1b" not in text


def test_help_of_a_comparison_fits_two_screens(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code = "from benchmarks.value_loss_variance import SCRIPT; print(SCRIPT.parser().format_help())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) <= 100
    assert "--ppo.*" in done.stdout


def test_a_reader_that_goes_away_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "benchmarks.env", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_command_is_named_as_it_was_called(monkeypatch):
    for path, said in (
        ("/usr/bin/dense-rlhf", "dense-rlhf env"),
        ("/x/benchmarks/__main__.py", "python -m benchmarks env"),
        ("/x/benchmarks/env.py", "python -m benchmarks.env"),
    ):
        monkeypatch.setattr(sys, "argv", [path, "env"])
        assert called_as("benchmarks.env") == said


def test_work_that_refuses_what_it_was_given_ends_in_one_line(capsys):
    def work(error):
        with refusals("benchmarks.x"):
            raise error

    assert refused(capsys, work, ValueError("no such arm")) == "python -m benchmarks.x: error: no such arm"
    assert refused(capsys, work, FileNotFoundError("gone")) == "python -m benchmarks.x: error: gone"
    with pytest.raises(TypeError):
        work(TypeError("a fault of ours"))


@pytest.fixture(scope="module")
def flags():
    return flags_of(SCRIPT.parser())


@pytest.mark.parametrize(
    ("python", "typed"),
    [
        ("give lora=LoraSettings(), or", "give --loading.lora '{}', or"),
        ("use dtype='float32'", "use --loading.dtype float32"),
        ('four_bit=True or dtype="bfloat16"', "--loading.four_bit true or --loading.dtype bfloat16"),
        (
            "use dtype='float32', with autocast='bfloat16'",
            "use --loading.dtype float32, with --loading.autocast bfloat16",
        ),
        ("Lower PPOConfig.max_length or", "Lower --ppo.max_length or"),
        ("max_length=(60, 60))", "--ppo.max_length '[60,60]')"),
        ("(config.first_step_checks='warn' goes on)", "(--ppo.first_step_checks warn goes on)"),
        ("critic='model' needs critic_model=<name>", "--loading.critic model needs --loading.critic_model <name>"),
        ("with load_policy(..., auxiliaries={'base': <name>})", "with --loading.auxiliaries '{base: <name>}'"),
        ("Use label, one of 'joy' (0)", "Use --reward_label, one of 'joy' (0)"),
        ("(pooling='hf'), fit(..., resume=True); task must be one of", None),
    ],
)
def test_a_setting_that_a_message_writes_as_python_is_written_as_it_is_typed(python, typed, flags):
    """The engine knows no command line, and both readers get a way out that they can copy."""
    assert as_typed(python, flags) == (typed or python)


@pytest.mark.parametrize(
    "words", [("--loading.lora", "{}"), ("--loading.lora.rank", "4"), ("--loading.auxiliaries", "{base: name}")]
)
def test_what_is_written_so_is_taken(words):
    assert SCRIPT.parser().parse_args(words)


def test_what_fails_on_the_way_ends_with_its_settings_as_flags(capsys):
    with pytest.raises(SystemExit) as ended:
        SCRIPT.parser().fail(RuntimeError("sparse failed: config.first_step_checks='warn' goes on"))
    assert ended.value.code == 1
    assert capsys.readouterr().err.endswith("error: sparse failed: --ppo.first_step_checks warn goes on\n")
