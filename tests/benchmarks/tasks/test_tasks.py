import dataclasses
import inspect
import json
import pickle
from pathlib import Path

import pytest
import torch
from tiny_toy import TINY

from benchmarks.tasks import model_loading
from benchmarks.tasks import toy_reviews as toy
from benchmarks.tasks.definitions import TASKS, PositiveGeneration, Toy, make_task
from benchmarks.tasks.loaded import task_fingerprint
from benchmarks.tasks.model_settings import Loading
from benchmarks.tasks.ppo_settings import CHANGES
from benchmarks.tasks.prepared_folder import MADE_BY
from rlhf_core.types import Sequences


@pytest.fixture(scope="module")
def toy_task(tmp_path_factory):
    return Toy(cache=str(tmp_path_factory.mktemp("toy")), recipe=TINY)


@pytest.mark.parametrize(("settings", "place"), [({"reward_device": "cuda:1"}, "cuda:1"), ({}, "cuda")])
def test_the_reward_model_is_loaded_on_its_own_device(settings, place, monkeypatch):
    monkeypatch.setattr(model_loading, "load_reward_model", lambda name, **given: given["device"])
    monkeypatch.setattr(model_loading, "load_policy", lambda name, **given: given["device"])
    loading = Loading(device="cuda", **settings)
    unchecked = inspect.unwrap(model_loading.held_reward)
    assert unchecked(loading, "reward") == place
    assert inspect.unwrap(model_loading.held_policy)(loading, "policy", reward=None) == "cuda"


def one_row(prompt, response):
    """A batch of one, a response that ended."""
    ids = toy.toy_tokenizer().convert_tokens_to_ids
    prompt_ids, response_ids = torch.tensor([ids(prompt.split())]), torch.tensor([ids(response.split())])
    length = torch.tensor([response_ids.shape[1]])
    return Sequences(
        prompt_ids=prompt_ids,
        prompt_mask=torch.ones_like(prompt_ids, dtype=torch.bool),
        response_ids=response_ids,
        response_mask=torch.ones_like(response_ids, dtype=torch.bool),
        min_lengths=torch.zeros_like(length),
        max_lengths=length,
        finished=torch.tensor([True]),
    )


def test_toy_prompts_are_beginnings_of_unseen_reviews(toy_task):
    loaded = toy_task.load()
    prompts = loaded.train_prompts + loaded.held_out_prompts
    assert {len(prompt) for prompt in prompts} == {2, 3, 4, 5, 6, 7}
    assert (len(loaded.train_prompts), len(loaded.held_out_prompts)) == (2048, 256)
    assert loaded.policy.eos_ids == (0,)
    texts = loaded.policy.decode(prompts)
    assert all(not text.endswith(toy.END) for text in texts)
    loaded.policy.validate([list(prompt) for prompt in prompts], 24)


def test_toy_truth_counts_the_prompt_but_credits_the_response(toy_task):
    loaded = toy_task.load()
    sequences = one_row("cast was good . it was not", "great . <eos>")
    assert loaded.gold(sequences) == [1 - 2]
    assert loaded.contributions(sequences)[0] == pytest.approx([-2 / 3, 0, 0])


@pytest.mark.slow
def test_a_task_travels_to_another_process_and_loads_the_same_again(toy_task):
    again = pickle.loads(pickle.dumps(toy_task))
    assert again == toy_task
    assert again.load().fingerprint == toy_task.load().fingerprint
    other = dataclasses.replace(toy_task, recipe=dataclasses.replace(TINY, seed=1))
    assert other.load().fingerprint != toy_task.load().fingerprint


def test_positive_generation_loads_what_prepare_made(prepared):
    task = make_task("positive_generation", models=str(prepared), cache=None)
    loaded = task.load()
    assert task.ppo["learning_rate"] == 1e-4
    assert loaded.gold is None
    assert all(2 <= len(prompt) <= 7 for prompt in loaded.train_prompts + loaded.held_out_prompts)
    rows = [[*prompt, 5, 6] for prompt in loaded.train_prompts[:4]]
    assert loaded.reward.score_ids(rows).isfinite().all()
    assert loaded.reward.tokenizer.get_vocab() == loaded.policy.tokenizer.get_vocab()


def test_the_paper_settings_stand_for_models_that_were_not_made_small(tmp_path):
    assert PositiveGeneration().ppo == {}
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"size": None}}))
    assert PositiveGeneration(models=str(tmp_path)).ppo == {}


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="no task 'tay'; one of toy, positive_generation"):
        make_task("tay")
    with pytest.raises(ValueError, match="task 'toy' has no setting models"):
        make_task("toy", models="somewhere")
    with pytest.raises(FileNotFoundError, match=r"policy is missing; .*benchmarks\.prepare"):
        PositiveGeneration(models=str(tmp_path)).load()


def test_weights_of_auxiliaries_are_in_the_fingerprint_and_their_places_are_not(tmp_path):
    def found(name, weights):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights)
        return task_fingerprint([], Loading(auxiliaries={"dpo": str(folder)}), ((1, 2),))

    assert found("here", b"one") == found("there", b"one") != found("other", b"two")
    assert task_fingerprint([], Loading(), ((1, 2),)) != found("again", b"one")


def test_what_a_task_changes_in_the_papers_settings_is_known_without_loading_it(tmp_path):
    assert CHANGES.keys() == TASKS.keys()
    (tmp_path / "run.json").write_text(json.dumps({"made_by": MADE_BY, "settings": {"size": "tiny"}}))
    own = {name: str(tmp_path / name) for name in ("policy", "data", "reward")}
    for name in ("policy", "reward"):
        Path(own[name]).mkdir()
    Path(own["data"]).touch()
    for name, changes in CHANGES.items():
        small = None if name in ("toy", "own") else str(tmp_path)
        given = own if name == "own" else {}
        for models in (None, small):
            assert make_task(name, models=models, **given).ppo == changes(models)
