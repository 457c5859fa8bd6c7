"""The embedded task's language model and reward model: trained once, cached under a name that says how."""

import inspect
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.base.json_files import fingerprint, jsonable, write_json
from benchmarks.base.run_folder import remove_stale, temporary_sibling
from benchmarks.tasks import toy_reviews as toy
from models.training import supervised
from models.training.objectives import Labelled
from models.training.settings import TrainingSettings

REPORT = "report.json"


@dataclass(frozen=True, kw_only=True)
class ToyRecipe:
    """How the models are made."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    context: int = 64
    init_std: float = 0.06
    reviews: int = 19_200
    held_out: int = 1_000
    gaps: float = 0.1
    """Share of words left out of every second review the reward model learns from: a policy in training does not
    always write sentences, and the truth is defined without them."""
    sharpness: float = 0.5
    """A reader calls a text positive with probability σ(sharpness x true score), so this is also the reward model's
    unit: its log-odds are fitted to sharpness x true score."""
    language: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(steps=150, batch_size=64, learning_rate=3e-3, beta2=0.98)
    )
    reward: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(epochs=2, batch_size=64, learning_rate=2e-3, beta2=0.98)
    )
    seed: int = 0


def toy_models(cache: str | Path | None = None, recipe: ToyRecipe | None = None) -> Path:
    """The folder with ``policy``, ``reward`` and ``report.json``, trained now (about a minute) unless it is there.

    ``cache`` is the folder above it (default: ``dense-rlhf`` in the user's cache folder). The name carries a hash of
    the recipe and of the code that carries it out, so models of another recipe are never taken for these; and the
    folder appears under that name only when complete.
    """
    recipe = recipe if recipe is not None else ToyRecipe()
    above = Path(cache) if cache is not None else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dense-rlhf"
    code = [Path(inspect.getfile(part)) for part in (toy_models, toy, supervised, Labelled)]
    folder = above.expanduser() / f"toy-{fingerprint([json.dumps(jsonable(recipe), sort_keys=True), *code])[:12]}"
    if folder.is_dir():
        return folder
    print(f"training the two small models of the embedded task (once, about a minute), kept in {folder}", flush=True)
    remove_stale(folder.parent, "toy-[0-9a-f]{12}")
    with temporary_sibling(folder) as temporary:
        write_json(temporary / REPORT, _build(temporary, recipe))
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, and its folder is the same
                raise
    return folder


def _build(folder: Path, recipe: ToyRecipe) -> dict[str, Any]:
    tokenizer, started = toy.toy_tokenizer(), time.perf_counter()
    reviews = toy.sample_reviews(recipe.held_out + recipe.reviews, seed=recipe.seed)
    held_out, reviews = reviews[: recipe.held_out], reviews[recipe.held_out :]
    ids, held_out_ids = ([toy.encode(tokenizer, review) for review in some] for some in (reviews, held_out))
    shape = {"layers": recipe.layers, "width": recipe.width, "heads": recipe.heads, "context": recipe.context}
    language_model = supervised.new_language_model(tokenizer, **shape, init_std=recipe.init_std, seed=recipe.seed)
    language = supervised.train_language_model(language_model, ids, held_out_ids, recipe.language)
    supervised.save(language_model, tokenizer, folder / "policy")
    reward_model = supervised.new_classifier(language_model, seed=recipe.seed)
    read = with_gaps(reviews, share=recipe.gaps, seed=recipe.seed)
    rows = [Labelled(ids=toy.encode(tokenizer, some), labels=_readers(some, recipe)) for some in read]
    tested = [
        Labelled(ids=row, labels=[float(toy.prefix_scores(review)[-1] > 0)])
        for row, review in zip(held_out_ids, held_out, strict=True)
    ]
    reward = supervised.train_classifier(reward_model, rows, tested, recipe.reward)
    supervised.save(reward_model, tokenizer, folder / "reward")
    return {"language_model": language, "reward_model": reward, "seconds": time.perf_counter() - started}


def with_gaps(reviews: Sequence[list[str]], *, share: float, seed: int) -> list[list[str]]:
    """The reviews, every second one without some of its words (its EOS stays)."""
    generator = np.random.default_rng([seed, 1])

    def thinned(review: list[str]) -> list[str]:
        kept = generator.random(len(review)) >= share
        return [word for word, keep in zip(review, kept, strict=True) if keep or word == toy.END]

    return [thinned(review) if i % 2 else review for i, review in enumerate(reviews)]


def _readers(review: Sequence[str], recipe: ToyRecipe) -> list[float]:
    """The share of readers that calls each beginning of a review positive."""
    log_odds = recipe.sharpness * np.array(toy.prefix_scores(review))
    return list(1 / (1 + np.exp(-log_odds)))
