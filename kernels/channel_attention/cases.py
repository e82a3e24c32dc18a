"""The shapes of channel attention in real variants at 224 pixels, and edge cases."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A call: map (height, width), heads, head_dim."""

    name: str
    shape: tuple[int, int]
    heads: int
    head_dim: int


MODELS = (
    Case("davit_tiny stage 0", (56, 56), 3, 32),
    Case("davit_tiny stage 3", (7, 7), 24, 32),
    Case("davit_base stage 2", (14, 14), 16, 32),
)
AWKWARD = (
    Case("odd map", (5, 9), 2, 16),
    Case("fewer positions than channels", (2, 1), 1, 8),
)
