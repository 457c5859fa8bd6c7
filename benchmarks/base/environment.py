"""The environment: versions, torch's build, devices, the state of the repository."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.base.run_folder import git_state
from rlhf_core.names import counted

PACKAGES = (
    *("dense-rlhf", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers"),
    *("safetensors", "numpy", "scipy", "jsonargparse", "tensorboard", "wandb"),
)
"""Whose versions decide what happens; the optional ones may be missing."""


def environment() -> Mapping[str, str]:
    """Everything by name, as one line of text each."""
    return {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "cpu": f"{os.cpu_count()} cores, {counted(torch.get_num_threads(), 'thread')} for torch",
        **{name: _version(name) for name in PACKAGES},
        "torch build": _torch_build(),
        "devices": "; ".join(_devices()) or "no CUDA device",
        "git": _git(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _torch_build() -> str:
    built_for = [
        f"{name} {found}" for name, found in (("CUDA", torch.version.cuda), ("ROCm", torch.version.hip)) if found
    ]
    return f"{torch.__version__}, {', '.join(built_for) or 'CPU only'}"


def _devices() -> list[str]:
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        f"{device.name}, {device.total_memory / 2**30:.0f} GiB, sm_{device.major}{device.minor}" for device in found
    ]


def _git() -> str:
    state = git_state(Path(__file__).parents[2])
    if state["commit"] is None:
        return "not in a repository of its own (an installed copy)"
    return f"{state['commit']}{', with changed files' if state['changed'] else ''}"
