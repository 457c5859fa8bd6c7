"""Comparing and training from Python: the same as the commands, on the caller's own prompts, reward and methods.

Everything runs in this process unless ``processes`` is 1 or more, so that functions and methods may be defined in a
notebook or in the script itself. Nothing heavy is imported before a function here is called.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from benchmarks.base.importing import name_of
from benchmarks.runs.settings import ComparisonSettings
from models.policy.publishing import require_ready
from rlhf_core.config import PPOConfig

Methods = str | Sequence[object]
"""Names as on the command line, or instances."""
PLAIN = (bool, int, float, str, type(None))


def compare(
    *,
    policy: str | Path,
    prompts: Any,
    reward: str | Callable[..., Any],
    out: str | Path,
    redistributors: Methods = "sparse,abc-d",
    seeds: int | Sequence[int] = 5,
    steps: int = 60,
    ppo: Mapping[str, Any] | PPOConfig | None = None,
    processes: int = 0,
    eval_prompts: int = 16,
    overwrite: bool = False,
    **further: Any,
) -> Any:
    """Run every method under every seed, one run after the other; ``processes=2`` runs two at a time.

    Writes table, figures and heat map under ``out``, and prints the table.

    ``policy`` is a folder or hub name. ``prompts``: the name of a file, or texts, chats or rows (a list or a
    ``datasets.Dataset``), which are written to ``OUT.prompts.jsonl`` so that the comparison can be gone on with.
    ``reward``: a function of (prompts, responses) and of columns by name, that function as "module:function", or the
    folder or hub name of a classifier. A function must stand at the top level of a module, script or notebook, and with
    ``processes`` of 1 or more in a module, as other processes import it. ``redistributors``: names, or instances.
    ``ppo``: a whole config, or changes of our defaults by name. ``processes``: how many runs at a time, each in a
    process of its own with one thread; 0 is one after the other in this process. ``further``: other settings of
    :class:`~benchmarks.runs.settings.ComparisonSettings`, such as ``controls``.

    Returns:
        The :class:`~benchmarks.reporting.comparison_report.Report`: ``table``, ``verdict`` and all curves.

    Raises:
        FileExistsError: ``out`` holds a comparison with other settings, all named, or something that is not ours.
        ValueError: a setting, prompt, reward or method that cannot be; found before anything is trained.
        RuntimeError: a run failed, or was interrupted; the same call goes on with the others.
    """
    settings = ComparisonSettings(
        task="own",
        policy=str(policy),
        data=_prompt_file(prompts, Path(out), overwrite=overwrite),
        reward=_reward_name(reward, processes),
        redistributors=_methods(redistributors),
        seeds=seeds if isinstance(seeds, int) else list(seeds),
        steps=steps,
        processes=processes,
        eval_prompts=eval_prompts,
        out=str(out),
        overwrite=overwrite,
        **further,
    )
    changes = _changes(ppo)
    settings.require_ppo(changes)
    from rich.console import Console

    from benchmarks.base.quiet_libraries import quietly
    from benchmarks.experiments.value_loss_variance import EXPERIMENT
    from benchmarks.reporting import comparison_report

    with quietly():
        done = EXPERIMENT.run(settings, settings.make_task(), changes, Console())
    return comparison_report.build(done.only)


def train(
    *,
    policy: str | Path,
    prompts: Any,
    reward: str | Callable[..., Any],
    out: str | Path,
    redistributor: object = "sparse",
    seed: int = 0,
    steps: int = 60,
    ppo: Mapping[str, Any] | PPOConfig | None = None,
    eval_prompts: int = 16,
    overwrite: bool = False,
    push_to_hub: str | None = None,
    **further: Any,
) -> Path:
    """Train one policy with one method in the folder ``out``, or go on with the run there; arguments as for
    :func:`compare`. ``push_to_hub``: a repository of the Hugging Face hub, "USER/NAME", that the policy is uploaded to
    in the end; a new one is private (see :func:`models.push_to_hub`).

    Returns:
        The folder of the trained policy, which ``models.load_policy`` reads.

    Raises:
        FileExistsError: ``out`` holds something else than a run.
        ValueError: as for :func:`compare`; or a run with other settings is in ``out``; or a push that cannot work.
        NotPushed: the run finished, but the upload failed; says how to push again.
        SystemExit: Ctrl-C, with a checkpoint to go on from.
    """
    settings = ComparisonSettings(
        task="own",
        policy=str(policy),
        data=_prompt_file(prompts, Path(out), overwrite=overwrite),
        reward=_reward_name(reward, 0),
        redistributors=_methods([redistributor]),
        controls=[],
        seeds=[seed],
        steps=steps,
        processes=0,
        eval_prompts=eval_prompts,
        out=str(out),
        overwrite=overwrite,
        **further,
    )
    changes = _changes(ppo)
    settings.require_ppo(changes)
    if push_to_hub is not None:
        require_ready(push_to_hub)
    from benchmarks.experiments.single_training import run_training

    return run_training(settings, changes, push_to=push_to_hub)


def _changes(ppo: Mapping[str, Any] | PPOConfig | None) -> dict[str, Any]:
    """PPO settings by name; the seed is that of each run."""
    given = asdict(ppo) if isinstance(ppo, PPOConfig) else dict(ppo or {})
    if isinstance(ppo, PPOConfig):
        del given["seed"]
    elif "seed" in given:
        raise ValueError("ppo sets a seed, but every run has its own: give seeds (or seed) instead")
    return given


def _prompt_file(prompts: Any, out: Path, *, overwrite: bool) -> str:
    """The file that prompts stand in: the one that was named, or one beside ``out``.

    Raises:
        ValueError: prompts that JSON cannot hold.
        FileExistsError: the file beside ``out`` holds other prompts.
    """
    if isinstance(prompts, str | Path):
        return str(prompts)
    lines = []
    for place, prompt in enumerate(prompts):
        row = prompt if isinstance(prompt, Mapping) else {"prompt": prompt}
        try:
            lines.append(json.dumps(row, ensure_ascii=False))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"prompt {place} cannot be written as JSON ({error}); give texts, numbers and lists"
            ) from error
    text, file = "".join(f"{line}\n" for line in lines), out.with_name(f"{out.name}.prompts.jsonl")
    if file.exists() and not overwrite and file.read_text(encoding="utf-8") != text:
        raise FileExistsError(f"{file} holds other prompts; choose another out, or pass overwrite=True")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return str(file)


def _reward_name(reward: str | Callable[..., Any], processes: int) -> str:
    """The name that a reward is imported by, or its folder."""
    if isinstance(reward, str | Path):
        return str(reward)
    name = name_of(reward)
    if processes and name.startswith("__main__:"):
        raise ValueError(
            f"the reward {name.partition(':')[2]} is defined in the program itself, which other processes do not "
            "import: leave out processes, or move it to a module of its own"
        )
    return name


def _methods(given: Methods) -> str | list[str]:
    return given if isinstance(given, str) else [one if isinstance(one, str) else _written(one) for one in given]


def _written(method: object) -> str:
    """An instance as it is written on the command line: its name, and the settings that are not the defaults.

    Raises:
        ValueError: an instance that cannot be written so.
    """
    from benchmarks.runs.arms import parse_arms

    if not is_dataclass(method) or isinstance(method, type):
        raise ValueError(f"redistributor {method!r} is not an instance of a dataclass; give it by name, as a text")
    with suppress(ValueError):  # a method without a name, or one that holds what cannot be typed
        (arm,) = parse_arms([str(method)])
        read: object = arm.redistributor()
        if read == method:
            return str(method)
    kind: Any = type(method)
    given = {each.name: getattr(method, each.name) for each in fields(method) if each.init}
    changed = {each.name: given[each.name] for each in fields(method) if each.init and each.default != given[each.name]}
    if not all(isinstance(value, PLAIN) for value in changed.values()):
        raise ValueError(f"redistributor {method!r} has settings that are objects; give it by name, as a text")
    settings = ", ".join(f"{name}={json.dumps(value)}" for name, value in changed.items())
    name = f"{kind.__module__}.{kind.__qualname__}"
    return f"{name}({settings})" if settings else name
