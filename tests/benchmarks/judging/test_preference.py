"""Pairwise preference from prompts to tables, on two tiny models."""

import io
import json
import shutil
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from rich.console import Console
from stub_endpoint import longer_wins, serving

from benchmarks.judging import sampled_responses as responses
from benchmarks.judging.pairwise_comparison import compare, named_judge
from benchmarks.judging.sampled_responses import checkpoints, read_prompts
from benchmarks.judging.settings import EndpointSettings, PreferenceSettings, RewardSettings, Sampling
from benchmarks.preference import SHORT, main
from models.policy.loading import load_policy
from models.tiny import save_tiny
from models.weights.lora_settings import LoraSettings

KEY = "sk-secret/+0123456789"
HOSTILE = "\x1b[31m[bold]\u202e"


@pytest.fixture
def serve():
    with serving() as start:
        yield start


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("reward"), head="classifier", padding="own", seed=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return [save_tiny(tmp_path_factory.mktemp("models") / name, seed=seed) for name, seed in (("one", 1), ("two", 2))]


@pytest.fixture
def settings(folders, tmp_path):
    rows = [{"instruction": f"w{2 + i} w{3 + i}"} for i in range(12)]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    return PreferenceSettings(
        first=folders[0],
        second=folders[1],
        first_name="abc",
        second_name="sparse",
        prompts=str(tmp_path / "prompts.json"),
        out=str(tmp_path / "out"),
        sampling=Sampling(max_tokens=6, batch_size=5),
        resamples=19,
    )


def run(settings, judge=None):
    text = io.StringIO()
    report = compare(settings, Console(file=text, width=150), judge)
    return report, text.getvalue()


class Counting:
    """Prefers the longer text, and counts how often it is asked."""

    order_sensitive, identity = True, {"kind": "test", "name": "counting"}

    def __init__(self):
        self.asked = 0

    def prefer(self, instruction, first, second):
        self.asked += 1
        return 0.5 + 0.3 * np.sign(len(first) - len(second))


def test_all_files_and_nothing_done_twice(settings, tmp_path, monkeypatch):
    judge = Counting()
    report, text = run(settings, judge)
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == {
        *("run.json", "prompts.json", "responses-first.json", "responses-second.json", "responses-first.tokens.json"),
        *("responses-second.tokens.json", "verdicts.jsonl", "table.md", "table.csv", "results.json"),
    }
    first, second = (json.loads((out / f"responses-{which}.json").read_text()) for which in ("first", "second"))
    assert [set(row) for row in first] == [{"instruction", "output", "generator", "dataset"}] * 12
    assert {row["generator"] for row in first} == {"abc"}
    assert {row["dataset"] for row in second} == {"prompts"}
    different = sum(a["output"] != b["output"] for a, b in zip(first, second))
    assert judge.asked == 2 * different == len((out / "verdicts.jsonl").read_text().splitlines())
    results = json.loads((out / "results.json").read_text())
    assert results["rates"]["wins"] == sum(len(a["output"]) > len(b["output"]) for a, b in zip(first, second))
    assert results["counts"]["equal_texts"] == 12 - different
    assert results["rates"]["position"]["disagreements"] == 0
    assert report.verdict in (out / "table.md").read_text()
    assert report.verdict.split(" [")[0] in text.replace("\n", " ")

    before = {name: (out / name).read_bytes() for name in ("responses-first.json", "table.md", "verdicts.jsonl")}
    monkeypatch.setattr(responses, "load_policy", None)  # a second call loads nothing
    assert run(settings, judge)[0] == report
    assert judge.asked == 2 * different
    assert before == {name: (out / name).read_bytes() for name in before}


def test_other_settings_are_refused_and_another_judge_reuses_the_responses(settings, folders, tmp_path, monkeypatch):
    run(settings, Counting())
    warmer = replace(settings, sampling=replace(settings.sampling, temperature=0.5))
    with pytest.raises(FileExistsError, match=r"sampling.temperature was 1.0 and is 0.5"):
        run(warmer, Counting())
    (tmp_path / "prompts.json").write_text(json.dumps([{"instruction": "w2"}]))
    with pytest.raises(FileExistsError, match=r"other datasets \(prompts was"):
        run(settings, Counting())
    run(replace(warmer, overwrite=True), Counting())
    monkeypatch.setattr(responses, "load_policy", None)
    again, _ = run(warmer, lambda instruction, first, second: "tie")
    assert again.judge.endswith("<lambda>")
    assert again.rates.ties == 1


def test_both_are_given_the_same_uniforms_and_equal_texts_are_not_judged(settings, folders, tmp_path):
    copy = shutil.copytree(folders[0], tmp_path / "copy")
    judge = Counting()
    report, _ = run(replace(settings, second=str(copy)), judge)
    assert judge.asked == 0
    assert (report.rates.ties, report.counts["equal_texts"]) == (12, 12)
    assert report.verdict.startswith("No winner")


def test_responses_depend_neither_on_batches_nor_on_other_prompts(settings, tmp_path):
    prompts = read_prompts(tmp_path / "prompts.json").kept
    one, two = checkpoints(settings)[0], replace(settings.sampling, batch_size=3)
    whole = responses.sampled(settings.sampling, one, prompts)
    assert responses.sampled(two, one, prompts[4:9]) == whole[4:9]
    assert any(response.finished for response in whole)
    assert all(1 <= response.tokens <= 6 for response in whole)
    least = responses.sampled(replace(settings.sampling, min_tokens=6), one, prompts)
    assert {response.tokens for response in least} == {6}


def test_adapters_and_half_precision_can_be_sampled_from(settings, folders, tmp_path):
    policy = load_policy(folders[0], lora=LoraSettings(rank=2))
    for parameter in policy.parameters():
        parameter.data += 0.1
    policy.save(str(tmp_path))
    prompts = read_prompts(tmp_path / "prompts.json").kept[:3]
    adapter = responses.Checkpoint(source=str(tmp_path), name="adapter")
    whole = responses.Checkpoint(source=folders[0], name="whole")
    half = replace(settings.sampling, dtype="bfloat16")
    assert responses.sampled(settings.sampling, adapter, prompts) != responses.sampled(
        settings.sampling, whole, prompts
    )
    for checkpoint in (adapter, whole):
        assert len(responses.sampled(half, checkpoint, prompts)) == 3


def test_responses_that_were_changed_are_not_used(settings, tmp_path):
    run(settings, Counting())
    file = tmp_path / "out" / "responses-first.json"
    file.write_text(json.dumps(json.loads(file.read_text())[1:]))
    with pytest.raises(ValueError, match="responses-first.json was changed"):
        run(settings, Counting())


def test_a_reward_model_judges_once_a_pair_and_reports_margins(settings, reward, tmp_path):
    report, text = run(replace(settings, reward=RewardSettings(model=reward, template="{instruction} {response}")))
    lines = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()]
    assert {line["order"] for line in lines} == {"first_second"}
    assert report.counts["mean_margin"] == pytest.approx(np.mean([line["margin"] for line in lines]))
    assert [line["probability"] for line in lines] == [float(line["margin"] > 0) for line in lines]
    assert "mean score of abc less that of sparse" in text
    assert report.rates.position.pairs == 0


def test_rows_are_refused_aloud(tmp_path):
    rows = [
        {"instruction": "good"},
        {"prompt": "also good", "dataset": "mine"},
        {"text": "no"},
        {"instruction": " "},
        {"instruction": 5},
        {"instruction": "good "},
        *({"prompt": f"bad {HOSTILE}", "instruction": None} for _ in range(5)),
        "text",
        {"instruction": "\ud800"},
    ]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    (tmp_path / "p.jsonl").write_text("\n".join([*map(json.dumps, rows[:2]), "{broken", ""]))
    prompts = read_prompts(tmp_path / "p.json")
    assert [(p.row, p.instruction, p.dataset) for p in prompts.kept] == [(1, "good", "p"), (2, "also good", "mine")]
    assert {reason: len(some) for reason, some in prompts.left_out.items()} == {
        "no column 'instruction' or 'prompt'": 1,
        "its instruction is empty": 1,
        "its instruction is not text": 6,
        "seen before": 1,
        "not a JSON object": 1,
        "its instruction is broken Unicode": 1,
    }
    summary = prompts.summary()
    assert "its instruction is not text: 6" in summary
    assert summary.count("    ") == 1 + 1 + 3 + 1 + 1 + 1
    assert "\x1b" not in summary
    lines = read_prompts(tmp_path / "p.jsonl")
    assert len(lines.kept) == 2
    assert lines.left_out == {"not a JSON object": ["3: {broken"]}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.txt", "hello", "unknown ending"),
        ("p.json", "{broken", "p.json cannot be read: JSONDecodeError"),
        ("p.json", '{"instruction": "x"}', "p.json must hold a JSON list of rows"),
        ("p.json", "[]", "not one usable row of 0"),
        ("p.jsonl", '{"text": 1}\n', "not one usable row of 1\n0 prompts\nleft out, no column 'instruction'"),
    ],
)
def test_files_that_hold_no_prompts_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as refused:
        read_prompts(tmp_path / name)
    assert said in str(refused.value)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "p.json").write_bytes(b"\xff[]")
    with pytest.raises(ValueError, match=r"p.json cannot be read: UnicodeDecodeError"):
        read_prompts(tmp_path / "p.json")
    (tmp_path / "p.json").write_bytes(b'\xef\xbb\xbf[{"prompt": "x"}]')  # a byte order mark is no fault
    assert len(read_prompts(tmp_path / "p.json").kept) == 1


def test_over_long_prompts_are_an_error_or_dropped(settings, tmp_path):
    rows = [{"instruction": "w2 " * n} for n in (1, 58, 59, 60, 61, 62)]  # the context is 64
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"over-long for abc: 4 of 6 prompts, the first in row 3: 59 prompt \+ 6 "):
        run(settings, Counting())
    assert not (tmp_path / "out").exists()  # so that other settings can be tried
    drop = replace(settings, sampling=replace(settings.sampling, over_long="drop"))
    report, text = run(drop, Counting())
    assert report.counts["prompts"] == 2
    assert "left out, over-long for abc: 4" in text
    assert run(drop, Counting()) == (report, text)
    (tmp_path / "prompts.json").write_text(json.dumps(rows[2:]))
    with pytest.raises(ValueError, match="no prompt fits"):
        run(replace(drop, out=str(tmp_path / "none")), Counting())


ENDPOINT = {"url": "https://example.org", "model": "m"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"second_name": "abc"}, "different names"),
        ({"endpoint": {"url": "https://example.org"}}, "belong together"),
        ({"endpoint": {"model": "m"}}, "belong together"),
        ({"resamples": 0}, "resamples must be 1 or more"),
        ({"prompts": "nowhere.json"}, "there is no file nowhere.json"),
        ({}, "name one judge"),
        ({"reward": {"model": "r"}, "endpoint": ENDPOINT}, "name one judge"),
    ],
)
def test_settings_that_do_not_go_together(settings, changes, said):
    changes = dict(changes)

    def judge():
        endpoint, reward = EndpointSettings(**changes.pop("endpoint", {})), RewardSettings(**changes.pop("reward", {}))
        return named_judge(replace(settings, endpoint=endpoint, reward=reward, **changes))

    with pytest.raises(ValueError, match=said):
        judge()


def test_flags_may_be_written_without_their_group(monkeypatch, tmp_path):
    read = []
    monkeypatch.setenv("K", "secret")
    monkeypatch.setattr(PreferenceSettings, "require_one_judge", lambda settings: read.append(settings) or sys.exit())
    (tmp_path / "rows.json").touch()
    common = ["--first", "a", "--second", "b", "--prompts", str(tmp_path / "rows.json")]
    short = ["--endpoint=https://x", "--model", "m", "--timeout-seconds", "7", "--api_key_env", "K"]
    full = ["--endpoint.url", "https://x", "--endpoint.model", "m"]
    for words in (short, full):
        with pytest.raises(SystemExit):
            main([*common, *words])
    assert read[0].endpoint == replace(read[1].endpoint, timeout_seconds=7.0, api_key_env="K")
    assert set(SHORT.values()) <= {
        *(f"--endpoint.{field.name}" for field in fields(EndpointSettings)),
        *(f"--reward.{field.name}" for field in fields(RewardSettings)),
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"template": "Human:"}, "template must hold {instruction}"),
        ({"template": "{instruction.__class__}"}, "template must hold {instruction}"),
        ({"template": "{instruction!r}"}, "template must hold {instruction}"),
        ({"min_tokens": 9, "max_tokens": 8}, "max_tokens must be 9 or more, got 8"),
        ({"temperature": 0}, "temperature must be above 0 and finite, got 0"),
    ],
)
def test_sampling_that_cannot_be(changes, said):
    with pytest.raises(ValueError) as refused:
        Sampling(**changes)
    assert said in str(refused.value)


def arguments(settings, *more):
    flags = {"first": settings.first, "second": settings.second, "prompts": settings.prompts, "out": settings.out}
    given = [word for name, value in flags.items() for word in (f"--{name}", value)]
    return [*given, "--sampling.max_tokens", "6", "--resamples", "19", *more]


def test_the_command_line_asks_an_endpoint_and_writes_the_key_nowhere(settings, serve, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JUDGE_KEY", KEY)

    def play(text, n):
        if n == 0:
            return 503, {}, f"overloaded, {KEY}"
        return f"unsure, {KEY} {HOSTILE}" if n == 1 else longer_wins(text, n)

    stub = serve(play)
    flags = ["--endpoint.url", stub.url, "--endpoint.model", "judge-1", "--endpoint.api_key_env", "JUDGE_KEY"]
    flags += ["--endpoint.backoff_seconds", "0.01"]
    flags += ["--sampling.template", "w2 {instruction}\nw3"]
    main(arguments(settings, *flags))
    said = capsys.readouterr()
    assert stub.requests[0]["headers"]["Authorization"] == f"Bearer {KEY}"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["counts"]["unreadable"], results["counts"]["pairs_left_out"]) == (1, 1)
    assert results["judge"] == "judge-1"
    assert "unsure, [key]" in (tmp_path / "out" / "verdicts.jsonl").read_text()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["endpoint"]["api_key_env"] == "JUDGE_KEY"
    for file in (tmp_path / "out").iterdir():
        assert KEY not in file.read_text()
        assert json.dumps(KEY)[1:-1] not in file.read_text()
    asked = len(stub.requests)
    stub.play = lambda text, n: (401, {}, f"bad key {KEY}")
    main(arguments(settings, *flags))  # all is there: nobody is asked
    assert len(stub.requests) == asked
    with pytest.raises(SystemExit) as ended:
        main(arguments(settings, *flags, "--endpoint.answer_tokens", "3"))
    assert "refused with HTTP 401: bad key [key]; call again" in str(ended.value)
    said = (said, capsys.readouterr())
    assert KEY not in "".join(part for one in said for part in one)


HTTPS = ["--endpoint.url", "https://example.org", "--endpoint.model", "m"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "name one judge"),
        (["--endpoint.url", "http://example.org", "--endpoint.model", "m"], "unencrypted"),
        ([*HTTPS, "--endpoint.api_key_env", KEY], "must be the NAME"),
        (["--sampling.template", "x", "--reward.model", "r"], "template must hold {instruction}"),
        (["--sampling.over_long", "ignore"], "over_long"),
        (["--first_name", "second"], "different names"),
    ],
)
def test_bad_input_ends_with_the_reason(settings, capsys, more, said):
    with pytest.raises(SystemExit) as ended:
        main(arguments(settings, *more))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert KEY not in error
    assert "Traceback" not in error


@pytest.mark.filterwarnings("ignore:.* words that the policy's tokenizer")
def test_model_texts_and_names_cannot_control_the_terminal(settings, tmp_path):
    rows = [{"instruction": f"w{i} {HOSTILE}"} for i in range(3)] + [{"text": HOSTILE}]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    report, text = run(replace(settings, first_name=HOSTILE), Counting())
    assert HOSTILE in report.verdict
    for said in (text, (tmp_path / "out" / "table.md").read_text()):
        assert not set("\x1b\u202e") & set(said)
        assert "[bold]" in said


def test_two_judges_are_one_too_many(settings, reward):
    with pytest.raises(ValueError, match="two judges"):
        run(replace(settings, reward=RewardSettings(model=reward)), Counting())
