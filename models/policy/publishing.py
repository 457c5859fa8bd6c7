"""``push_to_hub``: put a saved policy on the Hugging Face hub. Nothing else here writes to a network, and nothing calls
it unless the user asks for it."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rlhf_core.files.plain_files import open_plain, read_object
from rlhf_core.run.model_card import HUB_NAME, is_local, with_base

ADAPTER, BASE = "adapter_config.json", "base_model_name_or_path"
CARD = "README.md"
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", ADAPTER)
"""JSON files whose texts must not name a folder of this machine."""
WEIGHTS = ("model.safetensors", "model-*.safetensors", "adapter_model.safetensors")
LOADED = (
    *(*SETTINGS, *WEIGHTS, CARD, "model.safetensors.index.json", "value_head.safetensors"),
    *("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.json", "chat_template.jinja"),
)
"""The files that loading a policy reads, and its card: only these are uploaded."""
FOLDER = re.compile(r"(~\w*|[A-Za-z]:)?[/\\]{1,2}[^/\\\s]+[/\\].*", re.DOTALL)
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What ``push_to_hub`` did: the ``url`` of the repository, the ``files`` it uploaded, and the names in the folder
    that it ``left_out`` because loading the policy does not need them."""

    url: str
    files: tuple[str, ...]
    left_out: tuple[str, ...]


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    base: str | None = None,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
) -> Pushed:
    """Upload a saved policy to the repository ``repo_id`` of the Hugging Face hub, in one commit.

    ``folder`` is what ``policy.save`` wrote, such as ``runs/mine/checkpoint-60/policy``. Only what loading it needs is
    uploaded: weights or adapter, value head, tokenizer, configuration and card. Everything else in the folder is left
    out, and the result names it. Policy files of an earlier push that this one does not have are deleted.

    ``repo_id`` is "USER/NAME"; the repository is made where there is none. ``private`` holds for a repository that is
    made now; the hub keeps the visibility of one that exists. ``base`` is the hub name of an adapter's base model; it
    must be given where the adapter was trained on a local folder, which nobody else has. ``token`` replaces the one
    that you are logged in with, ``endpoint`` the hub's address.

    Raises:
        FileNotFoundError: ``folder`` holds no saved policy.
        ValueError: a name that the hub refuses, no token, offline mode, an adapter whose base is a local folder, or a
            configuration that names a folder of this machine. All are found before anything is sent.
        OSError, RuntimeError: the hub refuses the upload, or it breaks off.
    """
    require_ready(repo_id, token)
    chosen = policy_files(Path(folder), base)
    left_out = tuple(sorted(path.name for path in Path(folder).iterdir() if path.name not in chosen))
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(endpoint=endpoint, token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    stale = [name for name in api.list_repo_files(repo_id) if _is_loaded(name) and name not in (*chosen, CARD)]
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in chosen.items()]
    deleted = [CommitOperationDelete(path_in_repo=name) for name in stale]
    api.create_commit(repo_id, [*added, *deleted], commit_message="Upload a policy trained with dense-rlhf")
    return Pushed(url=f"{api.endpoint}/{repo_id}", files=tuple(chosen), left_out=left_out)


def require_name(repo_id: str) -> None:
    """Raise ValueError where ``repo_id`` is no name that a repository can have."""
    owner, slash, name = str(repo_id).partition("/")
    unfit = "--" in repo_id or ".." in repo_id or name.endswith((".git", "-", "."))
    if not (owner and slash and HUB_NAME.fullmatch(repo_id)) or unfit or len(name) > 96:
        raise ValueError(
            f"{repo_id!r} is no name of a hub repository; give USER/NAME, of letters, digits, '-', '_' and '.'"
        )


def require_ready(repo_id: str, token: str | None = None) -> None:
    """Refuse a push that cannot work, before anything is computed; asks no network.

    Raises:
        ValueError: a name that the hub refuses, no token, or offline mode.
    """
    require_name(repo_id)
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        raise ValueError(f"cannot push to {repo_id}: HF_HUB_OFFLINE is set; unset it, or do not push")
    if not (token or get_token()):
        raise ValueError(f"cannot push to {repo_id}: there is no token of the Hugging Face hub; {LOG_IN}")


def require_shared_base(policy: Any) -> None:
    """Refuse, before it is trained, a policy that is an adapter on a local folder: pushed, nobody else could load it.

    Raises:
        ValueError: it is one; names the base.
    """
    model = policy.language_model
    if hasattr(model, "peft_config") and is_local(str(model.name_or_path)):
        raise ValueError(
            f"the policy is an adapter on the local folder {str(model.name_or_path)!r}, which nobody else has. Train "
            "without pushing, and push the result with models.push_to_hub(folder, repo_id, base='OWNER/BASE')"
        )


def policy_files(folder: Path, base: str | None = None) -> dict[str, str | bytes]:
    """What is uploaded of a saved policy: for each file its path, or its content where ``base`` changes it.

    Raises:
        FileNotFoundError, ValueError: as :func:`push_to_hub` does for ``folder`` and ``base``.
    """
    names = sorted(path.name for path in folder.iterdir() if _is_loaded(path.name)) if folder.is_dir() else []
    if not ({"config.json", ADAPTER} & set(names) and any(_one_of(name, WEIGHTS) for name in names)):
        raise FileNotFoundError(f"{folder} holds no saved policy; name a folder such as RUN/checkpoint-60/policy")
    for name in names:
        open_plain(folder / name).close()  # a link may lead out of the folder
    chosen: dict[str, str | bytes] = {name: str(folder / name) for name in names}
    if ADAPTER in names:
        chosen |= _with_base(folder, base)
    elif base is not None:
        raise ValueError(f"{folder} is a whole model, not an adapter on {base!r}; leave out base")
    for name in set(names).intersection(SETTINGS):
        changed = chosen[name]
        settings = json.loads(changed) if isinstance(changed, bytes) else read_object(folder / name)
        _require_no_folder(folder / name, settings)
    return chosen


def _with_base(folder: Path, base: str | None) -> dict[str, bytes]:
    """The files of an adapter that name its base, where ``base`` takes its place; empty where it stays."""
    settings = read_object(folder / ADAPTER)
    named = str(settings.get(BASE))
    if is_local(base or named):
        raise ValueError(
            f"{folder} is an adapter on {named!r}{f', and base is {base!r}' if base else ''}: that is a local folder, "
            "which nobody else has. Give the name that its base has on the hub: base='OWNER/BASE'"
        )
    if base is None or base == named:
        return {}
    changed = {ADAPTER: json.dumps(settings | {BASE: base, "revision": None}, indent=2).encode()}
    if (folder / CARD).is_file():
        changed[CARD] = with_base((folder / CARD).read_text(encoding="utf-8"), named, base).encode()
    return changed


def _require_no_folder(file: Path, settings: Mapping[str, Any]) -> None:
    for key, text in _texts(settings):
        if FOLDER.fullmatch(text):
            raise ValueError(f"{file} names a folder of this machine, {key}={text!r}; take it out before you push")


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, with the key that it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _texts(part, str(name))
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, key)


def _is_loaded(name: str) -> bool:
    return _one_of(name, LOADED)


def _one_of(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
