"""Train one policy with one method under one seed, on your own prompts with your own reward.

``dense-rlhf train --policy DIR --data prompts.jsonl --reward my_rewards:concise --redistributor abc-d --out runs/mine``
leaves a run folder: metrics.jsonl, samples.jsonl, run.json and the last checkpoint, whose ``policy`` loads with
``models.load_policy``. Called again, a run that was cut short goes on, and one that ended takes further ``--steps``.
Without --policy, --data and --reward the embedded task is trained on. ``--push_to_hub USER/NAME`` uploads the policy in
the end; without it nothing is uploaded.
"""

import sys
from collections.abc import Sequence
from dataclasses import fields

from benchmarks.base.command_line import command_line
from benchmarks.base.resume_command import resume_command
from benchmarks.experiments.settings import TrainSettings
from models.policy.publishing import require_ready
from rlhf_core.config import PPOConfig

SECTIONS = {
    "what is trained": ("policy", "data", "reward", "reward_label", "redistributor", "seed", "steps", "out"),
    "other tasks": ("task", "models", "cache"),
    "how it runs": ("eval_every", "eval_prompts", "save_every", "overwrite", "push_to_hub"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; bad input ends the process with the reason."""
    parser = command_line(TrainSettings, "benchmarks.train", sections=SECTIONS)
    parser.add_class_arguments(PPOConfig, "ppo", skip={"seed"}, instantiate=False)  # the task's settings come first
    ppo = parser.parse_args(argv, defaults=False).as_dict().get("ppo", {})
    try:
        chosen = parser.instantiate(parser.parse_args(argv))
        given = TrainSettings(**{one.name: chosen[one.name] for one in fields(TrainSettings)})
        settings = given.comparison()
        settings.require_ppo(ppo)
        if given.push_to_hub is not None:
            require_ready(given.push_to_hub)
        from benchmarks.experiments.single_training import NotPushed, run_training
        from benchmarks.runs.worker_pool import RunFailed

        try:
            run_training(settings, ppo, push_to=given.push_to_hub)
        except (KeyboardInterrupt, SystemExit) as stopped:  # before the first step, or after one that is saved
            print(f"stopped; to go on: {resume_command(overwrite=settings.overwrite)}", file=sys.stderr)
            raise SystemExit(getattr(stopped, "code", 130)) from None
        except (RunFailed, NotPushed) as failed:
            parser.fail(failed)
    except (ValueError, OSError) as error:
        parser.refuse(error)


if __name__ == "__main__":
    main()
