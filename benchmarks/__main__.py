"""``dense-rlhf``, which is also ``python -m benchmarks``: the list of commands, and the way into each.

Every file of this folder is a command; a command that is added gets a line in ``COMMANDS``.
"""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version

from benchmarks.base.command_line import CONSOLE_SCRIPT, program
from benchmarks.base.interruption import stoppable
from rlhf_core.names import nearest
from rlhf_core.run.closed_stdout import make_lasting

COMMANDS: Mapping[str, Mapping[str, str]] = {
    "start here": {
        "train": "train one policy on your prompts and reward",
        "compare": "compare methods on your prompts and reward",
        "value_loss_variance": "compare methods on the embedded task or the paper's",
        "credit": "show a text's credit under any methods, without training",
        "report": "write a page for runs or comparisons, finished or not",
        "prepare": "make models and prompts of a task from data files",
        "presets": "list the settings files that are shipped, or copy one",
        "check": "check a comparison without running it, and its cost",
        "env": "print what a bug report needs",
    },
    "the paper": {
        "positive_generation": "learning curves of positive generation (figure 3)",
        "generation_length": "longer responses, sparser reward (figure 4)",
        "reward_kl": "reward against KL (figure 5)",
        "dialogue": "learning curves of dialogue (figure 6, left)",
        "beta_sweep": "how much of the score follows the credit (figure 7)",
        "summarisation": "learning curves of summarisation",
        "table1": "average reward of every task and method (table 1)",
        "learning_curves": "learning curves of any task",
        "sampling_mismatch": "whether sparse diverges because of the published sampler",
    },
    "methods under test": {
        "theory": "check what every method declares, by exact enumeration",
        "credit_faithfulness": "whether credit is faithful to the score",
        "gradient_quality": "bias and variance of each method's gradient",
        "length_drift": "which methods move the length at a constant score",
        "critics": "value loss under a critic of each kind",
        "over_optimisation": "proxy score against gold score by KL",
        "preference": "which of two checkpoints answers better, by a judge",
    },
    "cost": {
        "memory": "whether a PPO step fits the card",
        "throughput": "time of a PPO step, phase by phase",
        "card": "measure a card in ten minutes, in one JSON file",
        "evidence_cost": "what evidence costs in time and memory",
        "sampling_speed": "speed of sampling against generate",
        "levers": "what each part of the engine is worth alone",
    },
}
"""Commands in groups: the name, which is that of its module below ``benchmarks``, and what it is for."""
MODULES: Mapping[str, str] = {"credit": "credit_of_text"}
"""Where the module of a command has another name, since a room has the command's."""
ALL = {name: MODULES.get(name, name) for group in COMMANDS.values() for name in group}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that is named first, with the words after it; without a command, list all."""
    make_lasting()
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(overview())
        return
    if name == "--version":
        print(f"{CONSOLE_SCRIPT} {version('dense-rlhf')}")
        return
    known = name.replace("-", "_") if name not in ALL else name
    if known not in ALL:
        meant = nearest(name, ALL) or f"; {program()} lists them all"
        print(f"{program()}: error: there is no command {name!r}{meant}", file=sys.stderr)
        raise SystemExit(2)
    with stoppable("the same call goes on from what was saved, or else begins again"):
        command = import_module(f"benchmarks.{ALL[known]}")
        run = getattr(command, "main", None) or command.SCRIPT.main
        run(rest)


def overview() -> str:
    """Every command in its group, with a line each."""
    lines = [f"usage: {program()} COMMAND [--config NAME] [--SETTING VALUE ...]"]
    width = max(map(len, ALL)) + 2
    for title, group in COMMANDS.items():
        lines += ["", f"{title}:", *(f"  {name:<{width}}{about}" for name, about in group.items())]
    example = f"{program()} value_loss_variance --config demo --out runs/demo"
    return "\n".join([*lines, "", f"{program()} COMMAND --help explains a command. A first run:", f"  {example}"])


if __name__ == "__main__":
    main()
