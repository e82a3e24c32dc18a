"""The interfaces by which parts of a model describe themselves, apart from what they compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn


class Embed(nn.Module):
    """The first part of a stage: (B, H, W, dim_in) to (B, H / reduction, W / reduction, dim).

    Attributes:
        dim: channels of the output.
        reduction: how many times smaller the output is on each axis.
    """

    dim: int
    reduction: int = 1

    @staticmethod
    def input_convolutions(params: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the convolutions applied to the input, for these configuration keys."""
        return ()

    @staticmethod
    def dilated(params: Mapping[str, Any], dilation: int, strided: bool) -> Mapping[str, Any] | None:
        """The keys for an input that is `dilation` times finer, and, if not `strided`, an output of the input's size.

        None if there is no such form. Branches may define the same method without `strided`.
        """
        return None


@runtime_checkable
class Foldable(Protocol):
    """A part that can fold its batch norms into adjacent layers."""

    def fold(self) -> None:
        """Fold them; outputs in evaluation mode stay the same, up to rounding."""


@runtime_checkable
class InputFoldable(Protocol):
    """A part that can fold the batch norm of its input into its own layers."""

    def fold_input(self, norm: nn.Module) -> nn.Module:
        """Fold it. Returns what remains of the norm."""
