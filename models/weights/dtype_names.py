"""The precisions that weights are held in, by name; this file imports no model library, so a command line is quick."""

from typing import Literal

DType = Literal["float32", "bfloat16"]
