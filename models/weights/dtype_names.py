"""The precisions that weights are held and multiplied in, by name; this file imports no model library, so a command
line is quick."""

from typing import Literal

DType = Literal["float32", "bfloat16"]
Autocast = Literal["bfloat16"]
"""What float32 weights may be multiplied in."""
