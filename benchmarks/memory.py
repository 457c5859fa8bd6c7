"""Does a PPO step fit the card? Predict it before anything is loaded; on a GPU also measure it, phase by phase.

``python -m benchmarks.memory --preset dialogue --card_gib 24`` prints components x phases in GiB, the peak, whether it
fits, and which setting to change if not. With a CUDA device it then builds the models (random weights of the right
shape where the real ones are absent), caps torch at the card's size, and prints prediction beside measurement.
"""

import sys
from dataclasses import replace

from benchmarks.base.command_line import command_line
from benchmarks.cost.memory_settings import MemorySettings, Preset, from_preset

SECTIONS = {
    "models": ("policy", "reward", "dtype", "autocast", "four_bit", "sampling_dtype"),
    "training": ("training", "lora_rank", "critic", "gradient_checkpointing", "optimizer", "evidence"),
    "sizes": (
        *("rollout_batch_size", "minibatch_size", "prompt_tokens", "response_tokens"),
        *("micro_batch_tokens", "reward_micro_batch_tokens", "sampling_tokens"),
    ),
}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = command_line(MemorySettings, "benchmarks.memory", sections=SECTIONS)
    parser.add_argument(
        "--preset", type=Preset, default="dialogue", help="The paper's task whose settings to start from."
    )
    words = sys.argv[1:] if argv is None else argv
    asked = parser.parse_args([word for word in words if not word.startswith("--print")], defaults=False)
    preset = from_preset(asked.get("preset", "dialogue"))
    parser.set_defaults(vars(preset))
    chosen = parser.parse_args(words)
    try:
        settings = replace(preset, **{name: chosen[name] for name in vars(preset)})
        from rich.console import Console

        from benchmarks.cost.memory_report import run

        run(settings, Console(markup=False, highlight=False))
    except ValueError as error:
        parser.refuse(error)
    except MemoryError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
