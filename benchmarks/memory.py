"""Does a PPO step fit the card? Predicted before anything is loaded; on a GPU also measured, phase by phase.

``python -m benchmarks.memory --preset dialogue --card-gib 24`` prints components x phases in GiB, the peak, whether it
fits, and which setting to change if not. With a CUDA device it then builds the models (random weights of the right
shape where the real ones are absent), caps torch at the card's size, and prints prediction beside measurement.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich import box
from rich.console import Console
from rich.table import Table
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

Preset = Literal["dialogue", "summarisation", "positive_generation"]
TASK_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "dialogue": {},
    "summarisation": {
        "policy": "EleutherAI/gpt-j-6b",
        "reward": "EleutherAI/gpt-j-6b",
        "rollout_batch_size": 4,
        "prompt_tokens": 512,
        "response_tokens": 48,
    },
    "positive_generation": {
        "policy": "lvwerra/gpt2-imdb",
        "reward": "lvwerra/gpt2-imdb",
        "dtype": "float32",
        "four_bit": "none",
        "training": "full",
        "gradient_checkpointing": False,
        "prompt_tokens": 7,
        "response_tokens": 15,
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


def from_preset(preset: Preset, **overrides: Any) -> MemorySettings:
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
    now = predict(settings, policy, reward).peak
    found = [
        Change(name=name, value=value, peak=predict(replace(settings, **{name: value}), policy, reward).peak)
        for name, value in _candidates(settings)
    ]
    return sorted((change for change in found if change.peak < now), key=lambda change: change.peak)


def _candidates(settings: MemorySettings) -> Iterator[tuple[str, Any]]:
    """Single settings and the values that may take less memory."""
    budgets = ("micro_batch_tokens", "reward_micro_batch_tokens", "sampling_tokens")
    for name in (*budgets, "minibatch_size", "rollout_batch_size"):
        half = getattr(settings, name) // 2
        if half >= (settings.minibatch_size if name == "rollout_batch_size" else 1):
            yield name, half
    if not settings.gradient_checkpointing:
        yield "gradient_checkpointing", True
    if settings.optimizer != "paged_adamw_8bit":
        yield "optimizer", "paged_adamw_8bit"
    if settings.training == "full":
        yield "training", "lora"
    packed = {"none": ("policy", "reward"), "policy": ("both",), "reward": ("both",), "both": ()}[settings.four_bit]
    for choice in packed:
        if settings.training == "lora" or choice == "reward":
            yield "four_bit", choice


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


def prediction_table(prediction: Prediction) -> Table:
    """Components x phases in GiB, every phase at its fullest moment."""
    table = _table("GiB, predicted", *PHASES, bold=prediction.peak_phase)
    for component in COMPONENTS:
        table.add_row(component, *(_gib(prediction.phases[phase][component]) for phase in PHASES))
    table.add_section()
    table.add_row("total", *(_gib(prediction.total(phase)) for phase in PHASES))
    return table


def comparison_table(prediction: Prediction, measurement: Measurement) -> Table:
    """Prediction beside measurement, both without the CUDA context, which torch does not count."""
    table = _table("GiB, without context", "predicted", "measured", "predicted / measured")
    for phase, measured in measurement.peaks.items():
        predicted = prediction.total(phase) - CONTEXT_BYTES
        table.add_row(phase, _gib(predicted), _gib(measured), f"{predicted / measured:.2f}")
    return table


def _table(first: str, *others: str, bold: str = "") -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for title in others:
        table.add_column(title, justify="right", overflow="fold", style="bold" if title == bold else "")
    return table


def _gib(value: float) -> str:
    return f"{value / GIB:.2f}" if value else "–"


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
    for role, shape in (("policy", policy), ("reward", reward)):
        _say(console, f"{role} {shape.name} ({shape.parameters / 1e6:,.0f} M weights)")
    others = {name: value for name, value in vars(settings).items() if name not in ("policy", "reward")}
    _say(console, ", ".join(f"{name} {value}" for name, value in others.items()))
    console.print(prediction_table(prediction))
    note = "Every phase at its fullest moment; the CUDA context is assumed, the allocator's fragments are left out."
    if prediction.paged:
        note += (
            f" {_gib(prediction.paged)} GiB of optimizer states besides are paged: on the card only while it has room."
        )
    _say(console, note)
    _say(console, verdict(settings, prediction, helpful_changes(settings, policy, reward)))
    if settings.measure == "never":
        return
    if not torch.cuda.is_available():
        _say(console, "not measured: no CUDA device")
        return
    device = torch.device("cuda", torch.cuda.current_device())
    with capped(device, settings.card_gib * GIB - CONTEXT_BYTES) as limit:
        measurement = measure_step(settings, *configs, CudaMeter(device), device)
    console.print(comparison_table(prediction, measurement))
    where = f"measured on {torch.cuda.get_device_name(device)} under a cap of {_gib(limit)} GiB"
    _say(console, f"{where}; torch's allocator held {_gib(measurement.held)} GiB at most")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = command_line(MemorySettings, "benchmarks.memory")
    parser.add_argument(
        "--preset", type=Preset, default="dialogue", help=f"settings to start from: {', '.join(get_args(Preset))}"
    )
    given = parser.parse_args(argv, defaults=False).as_dict()
    preset = parser.parse_args(argv).preset
    changed = {name: value for name, value in given.items() if name in MemorySettings.__dataclass_fields__}
    try:
        run(from_preset(preset, **changed), Console())
    except ValueError as error:
        parser.refuse(error)
    except MemoryError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
