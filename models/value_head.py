"""The critic: one linear map on the policy's last hidden state."""

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_core.reading import reading

FILE = "value_head.safetensors"


class ValueHead(nn.Module):
    """Value of a state, in score units, from the hidden state that predicts the next token.

    Float32 whatever the trunk computes in. Weight and bias start at zero: values are exactly 0 at first, no random
    projection disturbs the first advantages, and the trunk gets no value gradient until the head has moved.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Float[Tensor, "token hidden"]) -> Float[Tensor, " token"]:
        """Values of the states before the tokens that ``hidden`` predicts."""
        values: Tensor = self.linear(hidden.float())
        return values[:, 0]

    def save(self, folder: str) -> None:
        """Write ``value_head.safetensors``."""
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in self.linear.state_dict().items()},
            Path(folder, FILE),
        )

    def restore(self, folder: str) -> None:
        """Read ``value_head.safetensors``.

        Raises:
            ValueError: a head of another size, or a file that holds none.
        """
        file = Path(folder, FILE)
        with reading(str(file)):
            state = load_file(file)
        found, wanted = (
            {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in some.items()}
            for some in (state, self.linear.state_dict())
        )
        if wanted != found:
            raise ValueError(f"{file} holds a head of {found}, the model needs {wanted}")
        if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
            raise ValueError(f"{file} holds values that are not finite")
        self.linear.load_state_dict(state)
