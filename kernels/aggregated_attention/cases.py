"""The shapes of aggregated attention in real variants at their own image size, and awkward ones.

One list for tests, benchmarks and documentation.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A call: map (height, width), pooled map, heads, head_dim, side of the window."""

    name: str
    shape: tuple[int, int]
    pooled: tuple[int, int]
    heads: int
    head_dim: int = 24
    size: int = 3


MODELS = (
    Case("transnext_micro stage 0", (56, 56), (7, 7), 2),
    Case("transnext_micro stage 1", (28, 28), (7, 7), 4),
    Case("transnext_micro stage 2", (14, 14), (7, 7), 8),
    Case("transnext_base stage 0", (56, 56), (7, 7), 4),
    Case("transnext_base stage 2", (14, 14), (7, 7), 16),
    Case("transnext_micro_AAAA_256 stage 3", (8, 8), (4, 4), 16),
)
AWKWARD = (
    Case("odd maps", (9, 13), (2, 3), 2, 16),
    Case("one position", (1, 1), (1, 1), 1, 8),
    Case("wider window", (6, 5), (2, 2), 2, 8, 5),
    Case("smaller than a window", (2, 1), (1, 1), 1, 8),
)
