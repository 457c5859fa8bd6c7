import gzip
import json

import pytest
import torch
from prepared_reviews import QUICK
from safetensors.torch import load_file
from transformers import GenerationConfig

from benchmarks.data.hold_out import held_out
from benchmarks.data.reviews import clean, read_reviews, review_prompts
from benchmarks.prepare import main
from benchmarks.tasks.preparation_settings import ReviewPreparation
from benchmarks.tasks.prepare_reviews import prepare_positive_generation
from benchmarks.tasks.prepared_folder import read_prompts
from benchmarks.tasks.starting_models import continuations
from models.rewards.loading import load_reward_model
from models.tiny import tiny_gpt2, tiny_tokenizer


def test_prepare_writes_models_prompts_and_a_record(prepared):
    assert {path.name for path in prepared.iterdir()} == {
        "policy",
        "reward",
        "prompts.jsonl",
        "report.json",
        "run.json",
    }
    report = json.loads((prepared / "report.json").read_text())
    assert report["language_model"]["perplexity"] > 1
    assert 0 <= report["reward_model"]["accuracy"] <= 1
    assert report["data"]["labelled"] == 80
    assert report["data"]["unlabelled"] == 30
    assert len(report["samples"]) > 0
    record = json.loads((prepared / "run.json").read_text())
    assert record["settings"]["reward"]["steps"] == 3
    assert set(record["datasets"]) == {"labelled.jsonl", "more.jsonl"}
    assert [path.name for path in prepared.parent.iterdir() if path.name.startswith(".")] == []


def test_prepared_prompts_are_split_as_the_reviews_are(prepared):
    reviews = read_reviews([prepared.parent / "labelled.jsonl"]).labelled
    tested = [review.text for review in reviews if held_out(review.text)]
    splits = read_prompts(str(prepared))
    assert len(splits["held_out"]) == len(tested)
    assert len(splits["train"]) == len(reviews) - len(tested)
    tokenizer = load_reward_model(str(prepared / "reward"), score="logit_difference").tokenizer
    assert all(
        text.startswith(tokenizer.decode(row["ids"])) for text, row in zip(tested, splits["held_out"], strict=True)
    )
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_a_base_model_is_fine_tuned_with_its_own_tokenizer(prepared, tmp_path):
    settings = ReviewPreparation(
        data=[str(prepared.parent / "labelled.jsonl")],
        out=str(tmp_path / "out"),
        base=str(prepared / "policy"),
        language=QUICK,
        reward=QUICK,
        max_tokens=16,
    )
    prepare_positive_generation(settings)
    first, second = (
        json.loads((folder / "policy" / "tokenizer.json").read_text()) for folder in (prepared, tmp_path / "out")
    )
    assert first["model"]["vocab"] == second["model"]["vocab"]


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_base_is_kept_as_it_is_and_its_lowest_layers_carry_the_reward(prepared, tmp_path):
    """The policy is the base; the reward model is its first layer, frozen, under a head that is trained."""
    settings = ReviewPreparation(
        data=[str(prepared.parent / "labelled.jsonl")],
        out=str(tmp_path / "out"),
        base=str(prepared / "policy"),
        keep_base=True,
        reward=QUICK,
        reward_layers=1,
        frozen_layers=1,
        tested=5,
        max_tokens=16,
    )
    report = prepare_positive_generation(settings)
    base, policy, reward = (weights(f) for f in (prepared / "policy", tmp_path / "out/policy", tmp_path / "out/reward"))
    assert {name: value.tolist() for name, value in policy.items()} == {n: v.tolist() for n, v in base.items()}
    assert not [name for name in reward if ".h.1." in name]
    frozen = [name for name in reward if ".h.0." in name or "wte" in name]
    assert len(frozen) > 5
    assert all(torch.equal(reward[name], base[name]) for name in frozen)
    assert not torch.equal(reward["transformer.ln_f.weight"], base["transformer.ln_f.weight"])
    assert report["language_model"].keys() == {"perplexity", "seconds"}
    assert report["data"]["tested"] == 5 < report["data"]["held_out"]


def test_layers_that_a_base_does_not_have_are_refused_before_it_is_trained(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.tasks.prepare_reviews.supervised.train_language_model", None)
    given = {"data": str(prepared.parent / "labelled.jsonl"), "out": str(tmp_path / "out"), "max_tokens": 16}
    for wrong in ({"reward_layers": 3}, {"frozen_layers": 3}, {"reward_layers": 1, "frozen_layers": 2}):
        with pytest.raises(ValueError, match="has 2 layers"):
            prepare_positive_generation(ReviewPreparation(**given, base=str(prepared / "policy"), **wrong))
    for wrong in ({"keep_base": True}, {"keep_base": True, "base": "b", "language": QUICK}):
        with pytest.raises(ValueError, match="give --base, and no --language"):
            ReviewPreparation(**given, **wrong)
    for name, value in (("reward_layers", 0), ("tested", 0), ("frozen_layers", -1)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            ReviewPreparation(**given, **{name: value})


def test_samples_come_from_the_whole_distribution():
    """Where all tokens are equally likely, and the folder's own settings would leave five of them."""
    model, tokenizer = tiny_gpt2(vocab_size=512, eos_ids=None), tiny_tokenizer(vocab_size=512)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.generation_config = own = GenerationConfig(do_sample=True, top_p=0.1, top_k=5, repetition_penalty=2.0)
    drawn = " ".join(text.split("|")[1] for text in continuations(model, tokenizer, [[2, 3]] * 8, seed=0))
    assert len(set(drawn.split())) > 150  # 200 expected of 8 x 32
    assert model.generation_config is own


def test_an_occupied_folder_is_kept(prepared, tmp_path):
    data = [str(prepared.parent / "labelled.jsonl")]
    stamp = (prepared / "report.json").read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite true"):
        prepare_positive_generation(ReviewPreparation(data=data, out=str(prepared)))
    assert (prepared / "report.json").read_bytes() == stamp
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not ours"):
        prepare_positive_generation(ReviewPreparation(data=data, out=str(tmp_path), overwrite=True))
    assert (tmp_path / "letters.txt").exists()


def test_overwriting_replaces_only_once_the_new_one_is_complete(prepared, tmp_path, monkeypatch):
    out = tmp_path / "out"
    settings = ReviewPreparation(
        data=[str(prepared.parent / "labelled.jsonl")],
        out=str(out),
        size="micro",
        language=QUICK,
        reward=QUICK,
        max_tokens=16,
        overwrite=True,
    )
    prepare_positive_generation(settings)
    before = (out / "prompts.jsonl").stat().st_mtime_ns
    prepare_positive_generation(settings)
    after = (out / "prompts.jsonl").stat().st_mtime_ns
    assert after != before
    monkeypatch.setattr("benchmarks.tasks.prepare_reviews.supervised.train_classifier", None)
    with pytest.raises(TypeError, match="NoneType"):
        prepare_positive_generation(settings)
    assert (out / "prompts.jsonl").stat().st_mtime_ns == after
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_defaults_that_depend_on_size_or_base_are_written_out():
    data = {"data": ["x"], "out": "y"}
    assert ReviewPreparation(**data).resolved().size == "tiny"
    based = ReviewPreparation(**data, base="gpt2").resolved()
    assert based.size is None
    assert based.language.learning_rate == 5e-5
    assert ReviewPreparation(**data, language=QUICK).resolved().language == QUICK
    with pytest.raises(ValueError, match=r"--size \(tiny\) or --base \(gpt2\), not both"):
        ReviewPreparation(**data, size="tiny", base="gpt2")
    with pytest.raises(ValueError, match="min_tokens 97"):
        ReviewPreparation(**data, min_tokens=97)


def test_command_line_names_its_tasks(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["chess"])
    assert "one of positive_generation, summarisation, dialogue" in capsys.readouterr().err


def test_cleaning():
    assert clean("One.<br /><br />Two\u0085three\x96 <BR>four\t\n five ") == "One. Two three four five"


def test_hold_out_is_a_tenth_and_never_changes():
    texts = [f"review {i}" for i in range(5000)]
    assert 0.085 < sum(map(held_out, texts)) / len(texts) < 0.115
    # fixed for good: another rule would mix old hold-outs with new training rows
    assert [i for i, text in enumerate(texts[:60]) if held_out(text)] == [7, 17, 25, 37]


def test_bad_rows_are_left_out_and_counted(tmp_path):
    rows = [
        {"text": "A fine film", "label": 1},
        {"text": "A dull film", "label": 0},
        {"text": "A  fine<br />film", "label": 1},
        {"text": 7, "label": 1},
        {"text": " \x85", "label": 1},
        {"label": 1},
        {"text": "No label"},
        {"text": "Wrong label", "label": "good"},
        {"text": "True is no label", "label": True},
        {"text": "x" * 60_000, "label": 0},
        ["a list"],
    ]
    file = tmp_path / "rows.jsonl.gz"
    with gzip.open(file, "wt") as lines:
        lines.write("\n".join(map(json.dumps, rows)) + "\nnot JSON\n")
    more = tmp_path / "more.jsonl"
    more.write_text('{"text": "A fine film"}\n{"text": "Unlabelled"}\n')
    reviews = read_reviews([more, file])  # the labelled file counts first, whatever the order
    assert [(review.text, review.label) for review in reviews.labelled] == [("A fine film", 1), ("A dull film", 0)]
    assert reviews.unlabelled == ["Unlabelled"]
    assert {reason: len(some) for reason, some in reviews.rejected.items()} == {
        "text seen before": 2,
        "'text' is not a string": 1,
        "'text' is empty": 1,
        "no column 'text'": 1,
        "no column 'label'": 1,
        "'label' is neither 0 nor 1": 2,
        "'text' has more than 50000 characters": 1,
        "not a JSON object": 2,
    }
    assert "left out, no column 'text': 1\n    rows.jsonl.gz:6: {'label': 1}" in reviews.summary()


def test_csv_and_parquet_are_read_alike(tmp_path):
    import datasets

    table = datasets.Dataset.from_dict({"text": ["A fine film", "A dull film"], "label": [1, 0]})
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    first, second = (read_reviews([tmp_path / name]).labelled for name in ("a.csv", "a.parquet"))
    assert first == second
    assert [review.label for review in first] == [1, 0]


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_reviews([tmp_path / "absent.jsonl"])
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="unknown ending"):
        read_reviews([tmp_path / "a.txt"])
    (tmp_path / "a.jsonl").write_text('{"review": "fine"}\n')
    with pytest.raises(ValueError, match=r"not one usable row of 1; left out: no column 'text'"):
        read_reviews([tmp_path / "a.jsonl"])
    file = tmp_path / "one_sided.jsonl"
    file.write_text("".join(json.dumps({"text": f"fine {i}", "label": 1}) + "\n" for i in range(50)))
    with pytest.raises(ValueError, match="0 to train on with label 0"):
        prepare_positive_generation(ReviewPreparation(data=[str(file)], out=str(tmp_path / "out")))


def test_prompt_lengths_are_two_to_seven_and_each_review_has_its_own():
    texts = [f"{i} " + "word " * 50 for i in range(600)] + ["short"]
    ids = [list(range(i, i + 50)) for i in range(601)]
    prompts = review_prompts(texts, ids)
    lengths = [len(prompt) for prompt in prompts]
    assert len(prompts) == 600
    assert set(lengths) == {2, 3, 4, 5, 6, 7}
    assert all(prompt == row[: len(prompt)] for prompt, row in zip(prompts, ids[:600], strict=True))
    assert review_prompts(texts[300:], ids[300:]) == prompts[300:]
    assert [len(prompt) for prompt in review_prompts(texts, ids, seed=1)] != lengths


@pytest.mark.slow
def test_real_reviews_are_clean(data_folder):
    reviews = read_reviews([data_folder / "imdb_train.jsonl.gz"]).labelled
    assert len(reviews) > 24_000
    assert not any("<br" in review.text or "\x85" in review.text or "\x96" in review.text for review in reviews)
