"""The shapes of depthwise convolutions in real variants at their own image size, and edge cases.

One list for tests, benchmarks and documentation.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A call: map (height, width), channels, kernel, stride, zeros on every side, activation."""

    name: str
    shape: tuple[int, int]
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: tuple[int, int] = (1, 1)
    act: str = "none"


MODELS = (
    Case("davit_tiny stage 0, positions", (56, 56), 96),
    Case("davit_tiny stage 2, positions", (14, 14), 384),
    Case("biformer_tiny stage 2, values", (14, 14), 256, 5, padding=(2, 2)),
    Case("litv2_s stage 2, hidden", (14, 14), 1536, act="gelu"),
    Case("transnext_micro stage 0, hidden", (56, 56), 192, act="gelu"),
    Case("maxvit_tiny_tf_224 stage 0, hidden", (112, 112), 256, 3, 2, act="gelu_tanh"),
    Case("maxvit_rmlp_pico_rw_256 stage 1, hidden", (32, 32), 256, act="silu"),
)
AWKWARD = (
    Case("one row", (1, 9), 40),
    Case("one column", (9, 1), 33, act="silu"),
    Case("an odd map and channels", (13, 17), 19, 5, 2, (2, 2), "gelu"),
    Case("no zeros", (7, 8), 24, 7, padding=(0, 0)),
    Case("more zeros than the kernel", (3, 4), 17, padding=(4, 0)),
    Case("few channels", (6, 5), 3),
    Case("a large kernel", (11, 12), 16, 9, padding=(4, 4)),
    Case("a long stride", (11, 12), 16, 3, 3),
)
