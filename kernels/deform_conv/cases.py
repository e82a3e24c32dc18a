"""The shapes of deformable convolution in real variants at their own image size, and edge cases.

One list for tests, benchmarks and documentation.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A call: map (height, width), channels in and out, kernel, stride, scale of the offsets in positions."""

    name: str
    shape: tuple[int, int]
    channels: tuple[int, int]
    kernel: tuple[int, int] = (2, 2)
    stride: tuple[int, int] = (2, 2)
    spread: float = 1.0


MODELS = (
    Case("litv2_s stage 1", (56, 56), (96, 192)),
    Case("litv2_s stage 2", (28, 28), (192, 384)),
    Case("litv2_s stage 3", (14, 14), (384, 768)),
)
AWKWARD = (
    Case("odd map", (7, 9), (4, 6)),
    Case("far offsets", (6, 5), (3, 2), spread=6.0),
    Case("oblong kernel", (8, 7), (2, 3), (3, 2), (1, 2)),
    Case("exactly one tap", (2, 2), (3, 4)),
)
