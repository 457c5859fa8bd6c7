"""The critic: one linear map on the policy's last hidden state."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from rlhf_core.files.tensor_files import read_tensors, require_same_tensors

FILE = "value_head.safetensors"


class ValueHead(nn.Module):
    """Value of a state, in score units, from the hidden state that predicts the next token.

    Float32 whatever the trunk computes in, under autocast too. Weight and bias start at zero: values are exactly 0 at
    first, no random projection disturbs the first advantages, and the trunk gets no value gradient until the head has
    moved.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Float[Tensor, "token hidden"]) -> Float[Tensor, " token"]:
        """Values of the states before the tokens that ``hidden`` predicts."""
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.linear(hidden.float())
        return values[:, 0]

    def save(self, folder: str) -> None:
        """Write ``value_head.safetensors``."""
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in self.linear.state_dict().items()},
            Path(folder, FILE),
        )

    def restore(self, folder: str) -> None:
        """Load ``value_head.safetensors``; raises like :meth:`read`."""
        self.read(folder)()

    def read(self, folder: str) -> Callable[[], object]:
        """Read ``value_head.safetensors`` without changing anything; calling the result applies it.

        Raises:
            ValueError: a head of another size, or a file that holds none.
        """
        file = Path(folder, FILE)
        state = read_tensors(file)
        require_same_tensors(str(file), state, self.linear.state_dict())
        return partial(self.linear.load_state_dict, state)
