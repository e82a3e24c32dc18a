"""The shapes of packed layers in real variants at their own image size, and edge cases.

One list for tests, benchmarks and documentation.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A call: map (height, width), channels of input and output, kernel, stride, activation."""

    name: str
    shape: tuple[int, int]
    channels: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    act: str = "none"


MODELS = (
    Case("davit_tiny stage 0, qkv", (56, 56), 96, 288),
    Case("davit_tiny stage 0, fc1", (56, 56), 96, 384, act="gelu"),
    Case("davit_tiny stage 2, fc2", (14, 14), 1536, 384),
    Case("davit_tiny stage 3, fc1", (7, 7), 768, 3072, act="gelu"),
    Case("davit_tiny stem", (230, 230), 3, 96, (7, 7), (4, 4)),
    Case("davit_tiny stage 3, embed", (14, 14), 384, 768, (2, 2), (2, 2)),
    Case("maxvit_tiny_tf_224 stage 1, expansion", (56, 56), 64, 512, act="gelu_tanh"),
    Case("maxvit_rmlp_pico_rw_256 stage 1, expansion", (64, 64), 32, 256, act="silu"),
)
AWKWARD = (
    Case("one position", (1, 1), 5, 3, act="gelu"),
    Case("a panel and one output", (3, 7), 9, 33, act="silu"),
    Case("one channel", (4, 5), 1, 1, (3, 2), (1, 2), "gelu_tanh"),
    Case("a kernel as large as the map", (5, 6), 4, 50, (5, 6)),
    Case("a stride beyond the kernel", (9, 8), 3, 20, (2, 1), (3, 4)),
    Case("many rows", (23, 31), 13, 70, (3, 3)),
)
