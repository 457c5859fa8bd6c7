"""Prompt templates by name; this file imports no model library, so a command line is quick.

A template is a name below, or a text with ``{prompt}`` where a single user message goes; ``chat`` is the tokenizer's
own chat template and takes any conversation. :mod:`~benchmarks.data.rendering` fills them in.
"""

from collections.abc import Mapping

CHAT = "chat"
TEMPLATES: Mapping[str, str] = {
    "plain": "{prompt}",
    "reddit": "{prompt}\n\nTL;DR:",
    "summary": "### Text to Summarize: {prompt}\n ### Summary: ",
    "instruction": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{prompt}\n\n### Response:"
    ),
    "human_assistant": "###Human: {prompt} ###Assistant: ",
}
"""``summary``, ``instruction`` and ``human_assistant`` are the paper's; the last is what its dialogue reward model
reads."""


def check_template(template: str) -> None:
    """Raise ValueError for a template that is neither a name nor a text with ``{prompt}`` once."""
    if template != CHAT and template not in TEMPLATES and template.count("{prompt}") != 1:
        names = ", ".join([*TEMPLATES, CHAT])
        raise ValueError(f"template {template!r} is none of {names}, and does not hold {{prompt}} exactly once")
