"""Where weights come from and how they are held in memory, checked before anything is read."""

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants, is_offline_mode, try_to_load_from_cache

from models.weights.dtype_names import DType
from models.weights.integrity import check_folder
from rlhf_core.distributed import take_own_card
from rlhf_core.names import nearest
from rlhf_core.run.model_card import HUB_NAME

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OTHER_WORDS = {"bf16": "'bfloat16'", "fp32": "'float32'", "fp16": "'bfloat16'", "half": "'bfloat16'"}


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where weights come from and how they are held.

    Raises:
        TypeError: a name or revision that is not text, a flag that is neither True nor False.
        ValueError: remote code without a pinned commit, an unknown dtype or device, a folder with damaged settings.
        FileNotFoundError: neither a folder nor a name that the hub, or offline its cache, could have.
    """

    name_or_path: str
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: DType = "float32"
    four_bit: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not isinstance(self.name_or_path, str | Path) or not str(self.name_or_path):
            raise TypeError(f"a model is a folder or a name on the hub, as text, got {self.name_or_path!r}")
        for flag in ("trust_remote_code", "four_bit"):
            if not isinstance(getattr(self, flag), bool):
                raise TypeError(f"{flag} must be True or False, got {getattr(self, flag)!r}")
        if self.revision is not None and not isinstance(self.revision, str):
            raise TypeError(f"revision must be the name of one, as text, got {self.revision!r}")
        if self.dtype not in list(DTYPES):
            raise ValueError(
                f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}"
                f"{nearest(self.dtype, DTYPES, OTHER_WORDS)}"
            )
        if self.trust_remote_code and not re.fullmatch("[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"trust_remote_code runs code that comes with {self.name_or_path!r}: pin it with revision=<the 40 hex "
                f"digits of a commit you have read>, got revision={self.revision!r}"
            )
        require_there(self.name_or_path, self.revision)
        check_folder(Path(self.name_or_path))
        _require_device(self.device)

    @property
    def code(self) -> dict[str, Any]:
        """Keyword arguments of every ``from_pretrained``."""
        pinned = {"code_revision": self.revision} if self.trust_remote_code else {}
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code, **pinned}


def same_place(one: ModelSource, other: ModelSource) -> bool:
    """Whether both name one folder, however it is spelled, or one model on the hub, of whatever revision."""
    places = [Path(source.name_or_path) for source in (one, other)]
    if all(place.is_dir() for place in places):
        return places[0].samefile(places[1])
    return str(one.name_or_path) == str(other.name_or_path)


def require_there(name: str, revision: str | None = None) -> None:
    """Say at once what retries over the network would find out late, or never.

    Raises:
        FileNotFoundError: no folder, and no name that the hub could have; or one that is not in its cache, where the
            hub cannot be asked.
    """
    if Path(name).is_dir():
        return
    if not HUB_NAME.fullmatch(str(name)):
        raise FileNotFoundError(f"there is no folder {name!r}; a name on the hub has the form owner/name")
    files = ("config.json", "adapter_config.json")
    if any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in files):
        return
    why = "offline (HF_HUB_OFFLINE)" if is_offline_mode() else _why_unreachable()
    if why:
        raise FileNotFoundError(
            f"there is no folder {name!r}, and {why} no hub model but those in the cache; a name on the hub has the "
            "form owner/name"
        )


def _why_unreachable() -> str:
    """Why the hub cannot be asked: the name of its host leads nowhere. Empty where it leads somewhere, or where a proxy
    would look it up."""
    host = urlsplit(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return "" if getproxies() else f"without a network ({host} is not found)"
    return ""


def _require_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be 'cpu', 'cuda' or kin, got {device!r}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: torch finds no CUDA device on this machine")
    if kind == "cuda":
        take_own_card()
