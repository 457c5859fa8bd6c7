"""The kinds of critics by name; this file imports no model library, so a command line is quick."""

from typing import Literal

CriticKind = Literal["shared", "adapter", "model"]
