"""The output of the memory command: prediction, verdict, suggested changes, and on a GPU the measurement."""

from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from transformers import AutoConfig, PreTrainedConfig

from benchmarks.cost.architectures import Head, shape_of
from benchmarks.cost.memory_measurement import CudaMeter, Measurement, capped, measure_step
from benchmarks.cost.memory_prediction import COMPONENTS, PHASES, Prediction, predict
from benchmarks.cost.memory_settings import BUILT_IN, CONTEXT_BYTES, GIB, MemorySettings
from benchmarks.cost.model_shape import ModelShape
from benchmarks.reporting.tables import Table, show

BUDGETS = ("micro_batch_tokens", "reward_micro_batch_tokens", "sampling_tokens", "minibatch_size", "rollout_batch_size")
"""Settings of which half may take less memory."""
SAVING = (
    *(("gradient_checkpointing", True), ("optimizer", "paged_adamw_8bit"), ("training", "lora")),
    ("sampling_dtype", "none"),
    *(("four_bit", whose) for whose in ("policy", "reward", "both")),
)
"""Settings that may take less memory."""


def config_of(name: str, head: Head) -> PreTrainedConfig:
    """The configuration behind a built-in name or a local folder; a built-in classifier has one label."""
    if name not in BUILT_IN:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False)
        return config
    built_in: PreTrainedConfig = AutoConfig.for_model(**BUILT_IN[name])
    if head == "classifier":
        built_in.num_labels = 1
    return built_in


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
    """Whether the peak fits the card, and what to change if it does not."""
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
    rows = [
        *((name, *(_gib(prediction.phases[phase][name]) for phase in PHASES)) for name in COMPONENTS),
        ("total", *(_gib(prediction.total(phase)) for phase in PHASES)),
    ]
    notes = ["Each phase at its fullest moment. The CUDA context is assumed; the allocator's fragments are left out."]
    if prediction.paged:
        notes.append(f"Another {_gib(prediction.paged)} GiB of optimizer states are on the card only if it has room.")
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


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size else "–"


def run(settings: MemorySettings, console: Console) -> None:
    """Predict and print, then measure and print, where that is asked for and possible.

    Raises:
        ValueError: an architecture that is not predicted, rows beyond a context, or a measurement that is required
            without a CUDA device.
        MemoryError: measuring ran out of memory under the cap.
    """
    if settings.measure == "required" and not torch.cuda.is_available():
        raise ValueError("measure 'required' needs a CUDA device, and there is none; 'never' prints the prediction")
    configs = config_of(settings.policy, "lm"), config_of(settings.reward, "classifier")
    policy, reward = shape_of(configs[0], "lm", settings.policy), shape_of(configs[1], "classifier", settings.reward)
    prediction = predict(settings, policy, reward)
    for role, shape in (("policy", policy), ("reward", reward)):
        console.print(f"{role}: {shape.name}, {shape.parameters / 1e6:,.0f} M weights")
    others = {name: value for name, value in vars(settings).items() if name not in ("policy", "reward")}
    console.print(", ".join(f"{name} {value}" for name, value in others.items()))
    found = verdict(settings, prediction, helpful_changes(settings, policy, reward))
    show(prediction_table(prediction, found), console)
    if settings.measure == "never":
        return
    if not torch.cuda.is_available():
        console.print("Not measured: there is no CUDA device.")
        return
    device = torch.device("cuda", torch.cuda.current_device())
    with capped(device, settings.card_gib * GIB - CONTEXT_BYTES) as limit:
        measurement = measure_step(settings, *configs, CudaMeter(device), device)
    note = (
        f"Measured on {torch.cuda.get_device_name(device)} under a cap of {_gib(limit)} GiB; torch's allocator "
        f"held {_gib(measurement.held)} GiB at most."
    )
    show(comparison_table(prediction, measurement, note), console)
