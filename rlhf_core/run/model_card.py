"""The README.md of a saved model: what it is, the settings and versions it was trained with, and how to load it."""

import html
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "dense-rlhf")
TAGS = ("dense-rlhf", "ppo", "rlhf")
HUB_NAME = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)
PATH = re.compile(r"(~|[A-Za-z]:|\.{1,2})?[/\\]")
FOLDERS = re.compile(r"(~\w*|\b[A-Za-z]:|(?<![\w.:/\\~]))[/\\]([^\s/\\'\"]+[/\\])+")
LONGEST_LINE = 200
LOADING = """\
```python
{imports}
from models import load_policy  # of dense-rlhf

{lines}
policy = load_policy("."{critic})  # or with what values come from, to evaluate or to train on
```
"""


def write_model_card(folder: Path, *, state: Mapping[str, object], metrics: Mapping[str, float]) -> None:
    """Write ``folder/README.md``, in place of any that is there: front matter of the hub, ``state`` (its "config"
    unfolded), versions, ``metrics``, and how to load the folder.

    Whatever comes from files or settings is escaped, cut at 200 characters, and without the folders of this machine: of
    a path only the last component is shown.

    Raises:
        ValueError: a configuration in the folder that is not a JSON object.
    """
    adapter, config = _read(folder / "adapter_config.json"), _read(folder / "config.json")
    base = str((adapter or config).get("base_model_name_or_path" if adapter else "_name_or_path") or "")
    library = "peft" if adapter else "transformers" if config else None
    parts = [
        _front_matter(library, base),
        "# A policy trained with dense-rlhf\n",
        f"{'A LoRA adapter' if adapter else 'A model'}{f' on {_named(base)}' if base else ''}; the critic that it was "
        "trained with is beside it.\n",
        "## Settings\n",
        _table("setting", _flat(state)),
        "## Versions\n",
        _table("package", versions()),
        "## Last metrics\n",
        _table("metric", ((name, f"{value:z.6g}") for name, value in metrics.items())),
        "## Loading\n",
        _loading(library, base, _critic(folder)),
    ]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def _read(file: Path) -> dict[str, object]:
    """Empty if there is no such file."""
    if not file.is_file():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}, not a JSON object")
    return found


def with_base(card: str, old: str, new: str) -> str:
    """The text of an adapter's ``card`` with ``new``, a name on the hub, in place of the folder ``old`` of its base."""
    front = f"library_name: peft\nbase_model: {json.dumps(new)}\n"
    changed = card if "\nbase_model: " in card else card.replace("library_name: peft\n", front, 1)
    changed = changed.replace(f"A LoRA adapter on {_named(old)};", f"A LoRA adapter on {_shown(new)};")
    return changed.replace(json.dumps(_where(old)), json.dumps(new))


def is_local(name: str) -> bool:
    """A name on the hub may also be a folder, relative to where we are: then that is what was loaded."""
    return not HUB_NAME.fullmatch(name) or Path(name).is_dir()


def _front_matter(library: str | None, base: str) -> str:
    """JSON strings are YAML strings, whatever is in them. A local base is not a name that the hub could link to."""
    lines = [] if library is None else [f"library_name: {library}"]
    lines += [f"base_model: {json.dumps(base)}"] if base and not is_local(base) else []
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in TAGS), "---\n"])


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves as ("kl.kind", "k1"); the names under "config" stand by themselves."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, prefix if name == "config" else f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def versions() -> Iterator[tuple[str, str]]:
    """Versions of Python and of the packages that determine a run's numbers."""
    yield "python", platform.python_version()
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"


def _table(what: str, rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {_shown(name)} | {_shown(value)} |" for name, value in rows]
    return "\n".join([f"| {what} | value |", "|---|---|", *lines, ""])


def _critic(folder: Path) -> str:
    """How to ask for the critic that a policy was saved with, beside its weights."""
    files = {"adapter": "adapter_config.json", "model": "config.json"}
    return "".join(f', critic="{kind}"' for kind, file in files.items() if (folder / "critic" / file).is_file())


def _loading(library: str | None, base: str, critic: str) -> str:
    """Code for a process whose working directory is the folder; text by others stands in it as a JSON string."""
    imports, lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer"], []
    if library == "peft":
        name = _where(base)
        imports.insert(0, "from peft import PeftModel")
        lines += [f"base = AutoModelForCausalLM.from_pretrained({json.dumps(name)})"]
        lines += ['model = PeftModel.from_pretrained(base, ".")']
    else:
        lines += ['model = AutoModelForCausalLM.from_pretrained(".")']
    lines += ['tokenizer = AutoTokenizer.from_pretrained(".")']
    return LOADING.format(imports="\n".join(imports), lines="\n".join(lines), critic=critic)


def _where(base: str) -> str:
    """How the code on a card names the base: a folder of this machine without where it is."""
    return f"path/to/{_last_component(base)}" if is_local(base) else base


def _last_component(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _shown(text: str) -> str:
    """One line that Markdown and HTML show as it is, without the folders of this machine."""
    text = _last_component(text) if PATH.match(text) else FOLDERS.sub("", text)
    text = text[:LONGEST_LINE] + (" …" if len(text) > LONGEST_LINE else "")
    text = "".join(char if char.isprintable() else " " for char in text)
    return html.escape(re.sub(r"([\\`*\[\]|~#$!])", r"\\\1", text), quote=False)


def _named(base: str) -> str:
    return f"{_shown(_last_component(base))} (a local folder)" if is_local(base) else _shown(base)
