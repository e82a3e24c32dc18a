"""The shapes of routing attention in real variants at their own image size, and awkward ones.

One list for tests, benchmarks and documentation.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A call: map (height, width), heads, head_dim, region (height, width), regions to attend."""

    name: str
    shape: tuple[int, int]
    heads: int
    head_dim: int
    region: tuple[int, int]
    topk: int


MODELS = (
    Case("biformer_tiny stage 0", (56, 56), 2, 32, (8, 8), 1),
    Case("biformer_tiny stage 1", (28, 28), 4, 32, (4, 4), 4),
    Case("biformer_tiny stage 2", (14, 14), 8, 32, (2, 2), 16),
    Case("biformer_base stage 0", (56, 56), 3, 32, (8, 8), 1),
    Case("biformer_base stage 1", (28, 28), 6, 32, (4, 4), 4),
    Case("biformer_base stage 2", (14, 14), 12, 32, (2, 2), 16),
)
AWKWARD = (
    Case("odd map", (9, 13), 2, 16, (3, 4), 2),
    Case("one position a region", (4, 3), 1, 8, (1, 1), 5),
    Case("one region", (5, 6), 2, 8, (5, 6), 1),
    Case("fewer regions than asked for", (4, 4), 1, 8, (2, 2), 9),
)
