"""The pages of docs/ are true: their code runs on tiny models, what cannot run here names things that exist, their
links lead somewhere, and the book has them all. Of benchmarks/RESULTS.md nothing runs; names and links are checked."""

import ast
import contextlib
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from often import fast
from pages import PAGES, RESULTS, ROOT, blocks, commands, module_and_arguments, name_of
from transformers import LlamaForTokenClassification

import benchmarks.compare
import rlhf_core
from benchmarks.compare import compare
from models import save_tiny
from models.tiny import llama_config, tiny_tokenizer
from rlhf_core import PPOConfig, PPOTrainer

BLOCKS = [block for page in (*PAGES, RESULTS) for block in blocks(page)]
LANGUAGES = {"python", "sh", "text", "yaml", "", "{toctree}", "{eval-rst}"}
WITH_PYTHON = [page for page in PAGES if any(block.language == "python" and block.run for block in blocks(page))]
SHORT = ("README.md", "howto/another_tokenizer.md", "howto/other_trainers.md", "howto/own_reward.md")
WORDS = [
    *("Tell", "me", "about", "tea.", "What", "is", "a", "quark?", "please", "This", "film", "was", "good", "bad"),
    *("the", "plot", "nobody", "called", "story"),
    *("2", "+", "3?", "4", "4?", "<extra_0>"),
]
REWARDS = """
def concise(prompts, responses):
    return [-len(response.split()) for response in responses]


def praise(prompts, responses):
    return [response.split().count("good") for response in responses]
"""


@pytest.fixture
def folder_of_a_reader(tmp_path, monkeypatch):
    """A working folder with the models that the pages speak of, prompts and rewards."""
    tiny = {"family": "llama", "context": 128, "words": WORDS}
    save_tiny(tmp_path / "my-policy", **tiny)
    save_tiny(tmp_path / "my-reward", head="classifier", padding="eos", **tiny)
    save_tiny(tmp_path / "my-sentiment", head="classifier", num_labels=2, **tiny)
    LlamaForTokenClassification(llama_config(context=128, num_labels=2)).save_pretrained(tmp_path / "my-steps")
    tiny_tokenizer(words=WORDS).save_pretrained(tmp_path / "my-steps")
    labels = {"id2label": {"0": "negative", "1": "positive"}, "label2id": {"negative": 0, "positive": 1}}
    config = tmp_path / "my-sentiment/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | labels))
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "Tell me about {i}."}}\n' for i in range(40)))
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    save_tiny(tmp_path / "another-reward", "gpt2", head="classifier", context=256, words=["<s>", *reversed(WORDS)])
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


@pytest.fixture
def small_runs(monkeypatch):
    """What pages ask for, in the size of a test: two steps of eight responses of six tokens."""
    fit = PPOTrainer.fit

    def small_config(**given):
        return PPOConfig(**{**given, "rollout_batch_size": 8, "minibatch_size": 4, "max_length": (6, 6)})

    def two_steps(self, prompts, steps, **given):
        fit(self, prompts, min(steps, 2), **given)

    def small_compare(**given):
        ppo = {"rollout_batch_size": 4, "minibatch_size": 2, "min_length": 1, "max_length": (6, 6)}
        return compare(**{**given, "seeds": 1, "steps": 2, "ppo": ppo})

    monkeypatch.setattr(benchmarks.compare, "compare", small_compare)
    monkeypatch.setattr(rlhf_core, "PPOConfig", small_config)
    monkeypatch.setattr(PPOTrainer, "fit", two_steps)


@pytest.mark.usefixtures("small_runs")
@pytest.mark.parametrize(
    "page",
    fast(SHORT, WITH_PYTHON, name_of),
    ids=name_of,
)
def test_the_python_of_a_page_runs(page, folder_of_a_reader):
    names: dict[str, object] = {"__name__": "page"}
    with contextlib.chdir(folder_of_a_reader):
        for block in blocks(page):
            if block.language != "python" or not block.run:
                continue
            if block.saved_as:
                (folder_of_a_reader / block.saved_as).write_text(block.text)
                importlib.invalidate_caches()
            code = re.sub(r"checkpoint-\d+", "checkpoint-2", block.text)
            exec(compile(code, name_of(page), "exec"), names)


def test_every_block_is_of_a_known_language():
    assert {block.language for block in BLOCKS} <= LANGUAGES


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "python" and not b.run], ids=lambda b: name_of(b.page)
)
def test_python_that_is_not_run_names_what_exists(block):
    """Imports resolve, and every keyword is one of the function's own."""
    tree = ast.parse(block.text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {a.name: getattr(importlib.import_module(n.module), a.name) for n in imports for a in n.names}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    known = [call for call in calls if call.func.id in names]
    assert known
    for call in known:
        inspect.signature(names[call.func.id]).bind_partial(**{word.arg: None for word in call.keywords})


SMALL = (
    *("--ppo.rollout_batch_size", "4", "--ppo.minibatch_size", "2"),
    *("--ppo.max_length", "[6,6]", "--ppo.min_length", "1"),
)
FEW_STEPS = ["--steps", "2"]
SMALLER: Mapping[str, Sequence[str]] = {
    "benchmarks.compare": [*FEW_STEPS, "--seeds", "1", "--processes", "1", *SMALL],
    "benchmarks.train": [*FEW_STEPS, *SMALL],
    "benchmarks.check": SMALL,
}
"""What is added to a command to make it small: of two equal flags the later counts."""
RUN = [page for page in PAGES if any(block.run and commands(block) for block in blocks(page) if block.language == "sh")]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_commands_of_a_page_run(page, folder_of_a_reader, monkeypatch):
    """From top to bottom, with the files that it tells its reader to save."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with contextlib.chdir(folder_of_a_reader):
        for block in blocks(page):
            if block.saved_as:
                Path(block.saved_as).write_text(block.text)
            elif block.run and block.language == "sh":
                for written in re.findall(r"^cat > .*?^END$", block.text, re.DOTALL | re.MULTILINE):
                    subprocess.run(["bash", "-c", written], check=True)
                for words in commands(block):
                    module, arguments = module_and_arguments(words)
                    command = [sys.executable, "-m", module, *arguments, *SMALLER.get(module, ())]
                    ended = subprocess.run(command, capture_output=True, text=True, check=False)
                    assert ended.returncode == 0, ended.stderr


COMMANDS = [
    (name_of(block.page), " ".join(words), *module_and_arguments(words))
    for block in BLOCKS
    if block.language == "sh"
    for words in commands(block)
]


@pytest.mark.parametrize(("page", "module", "arguments"), [(page, *rest) for page, _, *rest in COMMANDS])
def test_every_command_of_a_page_is_one_with_its_flags(page, module, arguments, capsys):
    """Each is parsed up to where it would begin."""
    command = importlib.import_module(module)
    main = getattr(command, "main", None) or command.SCRIPT.main
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--print_config"])
    assert ended.value.code in (None, 0), capsys.readouterr().err


@pytest.mark.parametrize("page", [*PAGES, RESULTS], ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([\w./-]*)(?:#([\w-]+))?\)", page.read_text("utf-8")):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\s-]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_book():
    toctrees = "\n".join(block.text for block in blocks(ROOT / "docs/index.md") if block.language == "{toctree}")
    listed = {line for line in toctrees.splitlines() if line and not line.startswith(":")}
    notebooks = {file.stem for file in (ROOT / "docs").glob("*.ipynb")}
    assert listed | {"index"} == {name_of(page).removesuffix(".md") for page in PAGES} | notebooks
