"""What `torch.utils.flop_counter` counts for the operators: two products of queries and keys, in backward five."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

Shapes = Sequence[tuple[int, ...]]


def count_operations(operation: str, tensors: int, keys: Callable[[Shapes, Sequence[Any]], int]) -> None:
    """Register the formulas of `zoo::operation` and its backward pass.

    Args:
        operation: a name in the namespace `zoo`, whose arguments are tensors, queries first, and then settings. Its
            backward pass takes the gradient before these, and between them the output and the log sum exp.
        tensors: how many of the arguments are tensors.
        keys: how many keys a query attends to, from the shapes of the tensors and the settings.
    """

    # The arguments are shapes, where the operator takes tensors, and then settings, of other types for each operator.
    def forward(*arguments: Any, **_: object) -> int:
        return 4 * math.prod(arguments[0]) * keys(arguments[:tensors], arguments[tensors:])

    def backward(_grad: object, *arguments: Any, **_: object) -> int:
        return 10 * math.prod(arguments[0]) * keys(arguments[:tensors], arguments[tensors + 2 :])

    register_flop_formula(getattr(torch.ops.zoo, operation))(forward)
    register_flop_formula(getattr(torch.ops.zoo, f"{operation}_backward"))(backward)
