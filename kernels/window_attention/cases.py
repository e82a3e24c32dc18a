"""The shapes of window attention in real variants at their own image size, and awkward ones.

One list for tests, benchmarks and documentation.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A call: map (height, width), heads, head_dim, size of a group, interval, whether there is a bias."""

    name: str
    shape: tuple[int, int]
    heads: int
    head_dim: int
    size: tuple[int, int]
    interval: tuple[int, int] = (1, 1)
    bias: bool = True


MODELS = (
    Case("davit_tiny stage 0", (56, 56), 3, 32, (7, 7), bias=False),
    Case("davit_tiny stage 2", (14, 14), 12, 32, (7, 7), bias=False),
    Case("maxvit_tiny_tf_224 stage 0 window", (56, 56), 2, 32, (7, 7)),
    Case("maxvit_tiny_tf_224 stage 0 grid", (56, 56), 2, 32, (7, 7), (8, 8)),
    Case("maxvit_tiny_tf_224 stage 3 grid", (7, 7), 16, 32, (7, 7)),
    Case("maxvit_tiny_tf_512 stage 1 grid", (64, 64), 4, 32, (16, 16), (4, 4)),
)
AWKWARD = (
    Case("odd map", (9, 13), 2, 16, (4, 4)),
    Case("map smaller than a group", (3, 5), 2, 16, (7, 7)),
    Case("padded grid", (10, 15), 2, 16, (4, 4), (3, 4)),
    Case("groups without a real token", (3, 3), 2, 16, (2, 2), (4, 4)),
    Case("oblong groups", (8, 12), 1, 8, (2, 6)),
    Case("one position", (1, 1), 1, 8, (2, 2)),
)
