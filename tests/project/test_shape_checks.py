"""The checks that stand in front of every function in these tests."""

from collections.abc import Callable

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor
from typecheck import checker


def made(kind: type) -> Callable[[object], int]:
    """A function inside a function, which is another one in every call."""

    @jaxtyped(typechecker=checker)
    def count(values: kind) -> int:
        return len(values)

    return count


def test_a_function_made_anew_is_checked_as_before_and_one_of_another_signature_by_its_own():
    for _ in range(2):
        rows = made(Float[Tensor, "rows columns"])
        assert rows(torch.ones(2, 3)) == 2
        with pytest.raises(TypeCheckError, match="values"):
            rows(torch.ones(2))
        flat = made(Float[Tensor, "columns"])
        assert flat(torch.ones(2)) == 2
        with pytest.raises(TypeCheckError, match="values"):
            flat(torch.ones(2, 3))


def test_shapes_are_checked_in_the_code_under_test():
    from rlhf_core.masking import masked_mean

    with pytest.raises(TypeCheckError, match="masked_mean"):
        masked_mean(torch.ones(2, 3), torch.ones(2, 4, dtype=torch.bool))
