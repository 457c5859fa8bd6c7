"""Does a PPO step fit the card? Predicted before anything is loaded; on a GPU also measured, phase by phase.

``python -m benchmarks.memory --preset dialogue --card_gib 24`` prints components x phases in GiB, the peak, whether it
fits, and which setting to change if not. With a CUDA device it then builds the models (random weights of the right
shape where the real ones are absent), caps torch at the card's size, and prints prediction beside measurement.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig, GPT2Config, GPTJConfig, LlamaConfig, PreTrainedConfig

from benchmarks.base.command_line import command_line
from benchmarks.cost.architectures import Head, shape_of
from benchmarks.cost.memory_measurement import CudaMeter, Measurement, capped, measure_step
from benchmarks.cost.memory_prediction import (
    COMPONENTS,
    CONTEXT_BYTES,
    GIB,
    PHASES,
    MemorySettings,
    ModelShape,
    Prediction,
    predict,
)
from benchmarks.reporting.tables import Table, number, show

TASK_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "dialogue": {},
    "summarisation": {
        **{"policy": "EleutherAI/gpt-j-6b", "reward": "EleutherAI/gpt-j-6b"},
        **{"rollout_batch_size": 4, "prompt_tokens": 512, "response_tokens": 48},
    },
    "positive_generation": {
        **{"policy": "lvwerra/gpt2-imdb", "reward": "lvwerra/gpt2-imdb", "dtype": "float32", "four_bit": "none"},
        **{"training": "full", "gradient_checkpointing": False, "prompt_tokens": 7, "response_tokens": 15},
    },
}
"""What each of the paper's tasks (Tables 2-4) changes in the defaults, which are dialogue's. The paper's reward models
are not quantised (``four_bit`` "policy"); its prompts of summarisation are under 450 tokens."""


OPEN_LLAMA = partial(
    LlamaConfig, vocab_size=32_000, num_attention_heads=32, max_position_embeddings=2048, rms_norm_eps=1e-6
)
OPEN_LLAMA_7B = partial(OPEN_LLAMA, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32)
OPEN_LLAMA_3B = partial(OPEN_LLAMA, hidden_size=3200, intermediate_size=8640, num_hidden_layers=26)
SHAPES: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "VMware/open-llama-7b-open-instruct": OPEN_LLAMA_7B,
    "openlm-research/open_llama_7b": OPEN_LLAMA_7B,
    "openlm-research/open_llama_3b": OPEN_LLAMA_3B,
    "weqweasdas/hh_rlhf_rm_open_llama_3b": OPEN_LLAMA_3B,
    "EleutherAI/gpt-j-6b": GPTJConfig,
    "lvwerra/gpt2-imdb": GPT2Config,
    "openai-community/gpt2": GPT2Config,
}
"""Architectures by hub name, so that none is downloaded."""
BUDGETS = ("micro_batch_tokens", "reward_micro_batch_tokens", "sampling_tokens", "minibatch_size", "rollout_batch_size")
"""Settings of which half may take less memory."""
SAVING = (
    *(("gradient_checkpointing", True), ("optimizer", "paged_adamw_8bit"), ("training", "lora")),
    *(("four_bit", whose) for whose in ("policy", "reward", "both")),
)
"""Settings that may take less memory."""


def from_preset(preset: str, **overrides: Any) -> MemorySettings:
    """A preset's settings with some of them changed; raises ValueError for settings that cannot be."""
    return MemorySettings(**{**TASK_PRESETS[preset], **overrides})


def config_of(name: str, head: Head) -> PreTrainedConfig:
    """The configuration behind a built-in name or a local folder; a built-in classifier has one label.

    Raises:
        ValueError: neither; names what is built in.
    """
    if Path(name, "config.json").is_file():
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False)
        return config
    if name not in SHAPES:
        raise ValueError(
            f"{name!r} is no folder with a config.json and no built-in shape; built in are {', '.join(SHAPES)}. "
            "Download the model's config.json into a folder and name that"
        )
    config = SHAPES[name]()
    if head == "classifier":
        config.num_labels = 1
    return config


@dataclass(frozen=True, kw_only=True)
class Change:
    """One setting changed, and the peak it gives in bytes."""

    name: str
    value: object
    peak: float

    @property
    def text(self) -> str:
        """As a flag."""
        shown = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"--{self.name} {shown} ({self.peak / GIB:.1f} GiB)"


def helpful_changes(settings: MemorySettings, policy: ModelShape, reward: ModelShape) -> list[Change]:
    """Single changes that lower the peak, each predicted anew, the most helpful first."""
    now, found = predict(settings, policy, reward).peak, list[Change]()
    halves = [(name, getattr(settings, name) // 2) for name in BUDGETS]
    for name, value in (*halves, *SAVING):
        with suppress(ValueError):  # of settings that do not go together
            peak = predict(replace(settings, **{name: value}), policy, reward).peak
            found.append(Change(name=name, value=value, peak=peak))
    return sorted((change for change in found if change.peak < now), key=lambda change: change.peak)


def verdict(settings: MemorySettings, prediction: Prediction, changes: list[Change]) -> str:
    """Whether the peak fits the card, and what to change where it does not."""
    card, peak = settings.card_gib, prediction.peak / GIB
    where = f"{peak:.1f} GiB at most, in the phase {prediction.peak_phase!r}"
    if peak <= card:
        return f"Fits {card:g} GiB: {where}, {card - peak:.1f} GiB to spare."
    fitting = [change.text for change in changes if change.peak <= card * GIB]
    way_out = "No setting helps; use smaller models."
    if fitting:
        way_out = f"Any one of these makes it fit: {'; '.join(fitting)}."
    elif changes:
        way_out = f"No single change is enough; most helpful: {changes[0].text}."
    return f"Does not fit {card:g} GiB: {where}. {way_out}"


def prediction_table(prediction: Prediction, verdict: str) -> Table:
    """Components x phases in GiB, every phase at its fullest moment."""
    rows = [(name, *(_gib(prediction.phases[phase][name]) for phase in PHASES)) for name in COMPONENTS]
    rows.append(("total", *(_gib(prediction.total(phase)) for phase in PHASES)))
    notes = ["Each phase at its fullest moment. The CUDA context is assumed; the allocator's fragments are left out."]
    if paged := prediction.paged / GIB:
        notes.append(f"Another {number(paged)} GiB of optimizer states are on the card only while it has room.")
    columns = ("GiB", *PHASES)
    return Table(title="predicted memory", columns=columns, rows=tuple(rows), notes=tuple(notes), verdict=verdict)


def comparison_table(prediction: Prediction, measurement: Measurement, note: str) -> Table:
    """Prediction beside measurement, both without the CUDA context, which torch does not count."""
    predicted = {phase: prediction.total(phase) - CONTEXT_BYTES for phase in measurement.peaks}
    rows = tuple(
        (phase, _gib(predicted[phase]), _gib(measured), predicted[phase] / measured)
        for phase, measured in measurement.peaks.items()
    )
    columns = ("GiB, without context", "predicted", "measured", "predicted / measured")
    return Table(title="measured memory", columns=columns, rows=rows, notes=(note,))


def _gib(size: float) -> float | None:
    return size / GIB if size else None


def run(settings: MemorySettings, console: Console) -> None:
    """Predict and print; measure and print where asked and possible.

    Raises:
        ValueError: unknown models, rows beyond a context, or a measurement required without a CUDA device.
        MemoryError: measuring ran out of memory under the cap.
    """
    if settings.measure == "required" and not torch.cuda.is_available():
        raise ValueError("measure 'required' needs a CUDA device, and there is none; 'never' prints the prediction")
    configs = config_of(settings.policy, "lm"), config_of(settings.reward, "classifier")
    policy, reward = shape_of(configs[0], "lm", settings.policy), shape_of(configs[1], "classifier", settings.reward)
    prediction = predict(settings, policy, reward)
    console.print(", ".join(f"{name} {value}" for name, value in vars(settings).items()))
    for role, shape in (("policy", policy), ("reward", reward)):
        console.print(f"{role}: {shape.parameters / 1e6:,.0f} M weights")
    found = verdict(settings, prediction, helpful_changes(settings, policy, reward))
    show(prediction_table(prediction, found), console)
    if settings.measure == "never":
        return
    if not torch.cuda.is_available():
        console.print("not measured: no CUDA device")
        return
    device = torch.device("cuda", torch.cuda.current_device())
    with capped(device, settings.card_gib * GIB - CONTEXT_BYTES) as limit:
        measurement = measure_step(settings, *configs, CudaMeter(device), device)
    note = (
        f"Measured on {torch.cuda.get_device_name(device)} under a cap of {number(limit / GIB)} GiB; torch's allocator "
        f"held {number(measurement.held / GIB)} GiB at most."
    )
    show(comparison_table(prediction, measurement, note), console)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = command_line(MemorySettings, "benchmarks.memory")
    parser.add_argument("--preset", choices=tuple(TASK_PRESETS), default="dialogue", help="settings to start from")
    given = parser.parse_args(argv, defaults=False).as_dict()
    given.pop("config", None)
    try:
        run(from_preset(given.pop("preset", "dialogue"), **given), Console(markup=False, highlight=False))
    except ValueError as error:
        parser.refuse(error)
    except MemoryError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
