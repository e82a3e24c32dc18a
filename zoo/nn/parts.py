"""What the parts of a model say about themselves, beside what they compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn


class Embed(nn.Module):
    """What a stage begins with: (B, H, W, dim_in) to (B, H / reduction, W / reduction, dim).

    Attributes:
        dim: channels of the output.
        reduction: how many times smaller the output is on each axis.
    """

    dim: int
    reduction: int = 1

    @staticmethod
    def input_convolutions(params: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the convolutions that see the input, for these keys of the configuration."""
        return ()

    @staticmethod
    def dilated(params: Mapping[str, Any], dilation: int, strided: bool) -> Mapping[str, Any] | None:
        """The keys for an input that is `dilation` times finer, and, if not `strided`, an output of the input's size.

        None if there is no such form. A branch may have the same, without `strided`.
        """
        return None


@runtime_checkable
class Foldable(Protocol):
    """A part that can put its batch norms into the layers beside them."""

    def fold(self) -> None:
        """Do so; outputs in evaluation mode stay, up to rounding."""


@runtime_checkable
class InputFoldable(Protocol):
    """A part that can put the batch norm of its input into its own layers."""

    def fold_input(self, norm: nn.Module) -> nn.Module:
        """Do so; what is left of the norm."""
