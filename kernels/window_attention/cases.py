"""The shapes of window attention in real variants at their own image size, and edge cases.

One list for tests, benchmarks and documentation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


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

    def tensors(
        self, batch: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> dict[str, torch.Tensor]:
        """Random arguments of a dtype and on a device; None for PyTorch's defaults."""
        q, k, v = torch.randn(batch, *self.shape, 3, self.heads, self.head_dim, dtype=dtype, device=device).unbind(3)
        tokens = self.size[0] * self.size[1]
        pairs = {"bias": torch.randn(self.heads, tokens, tokens, dtype=dtype, device=device)} if self.bias else {}
        return {"q": q, "k": k, "v": v, **pairs}

    def settings(self) -> dict[str, tuple[int, int]]:
        """The other arguments."""
        return {"size": self.size, "interval": self.interval}


MODELS = (
    Case("davit_tiny stage 0", (56, 56), 3, 32, (7, 7), bias=False),
    Case("davit_tiny stage 2", (14, 14), 12, 32, (7, 7), bias=False),
    Case("maxvit_tiny_tf_224 stage 0 window", (56, 56), 2, 32, (7, 7)),
    Case("maxvit_tiny_tf_224 stage 0 grid", (56, 56), 2, 32, (7, 7), (8, 8)),
    Case("maxvit_tiny_tf_224 stage 3 grid", (7, 7), 16, 32, (7, 7)),
    Case("maxvit_nano_rw_256 stage 1 window", (32, 32), 4, 32, (8, 8)),
    Case("maxvit_tiny_tf_384 stage 2 grid", (24, 24), 8, 32, (12, 12), (2, 2)),
    Case("maxvit_tiny_tf_384 stage 3 window at 448", (14, 14), 16, 32, (12, 12)),
    Case("maxvit_tiny_tf_512 stage 1 grid", (64, 64), 4, 32, (16, 16), (4, 4)),
    Case("crossformer_pp_small stage 1", (28, 28), 4, 32, (4, 4), (2, 2)),
    Case("crossformer_pp_small stage 2", (14, 14), 8, 32, (14, 14)),
    Case("litv2_s stage 2", (14, 14), 2, 32, (2, 2), bias=False),
)
AWKWARD = (
    Case("odd map", (9, 13), 2, 16, (4, 4)),
    Case("map smaller than a group", (3, 5), 2, 16, (7, 7)),
    Case("padded grid", (10, 15), 2, 16, (4, 4), (3, 4)),
    Case("groups without a real token", (3, 3), 2, 16, (2, 2), (4, 4)),
    Case("oblong groups", (8, 12), 1, 8, (2, 6)),
    Case("one position", (1, 1), 1, 8, (2, 2)),
    Case("one token", (3, 4), 2, 16, (1, 1)),
    Case("several groups in a tile", (10, 9), 3, 24, (3, 3), (1, 2)),
    Case("groups laid out as rows", (5, 49), 2, 48, (1, 49)),
    Case("long row", (3, 70), 1, 24, (1, 70)),
    Case("long groups on a padded map", (17, 13), 2, 8, (9, 8), (1, 1)),
    Case("long groups, padded and strided", (9, 31), 1, 48, (5, 17), (2, 2)),
    Case("long groups beyond the map", (3, 3), 1, 16, (9, 9), (2, 4)),
    Case("largest group", (5, 29), 1, 16, (32, 32), bias=False),
    Case("wide head", (7, 9), 2, 96, (4, 8)),
    Case("wide head, long groups, no bias", (8, 20), 1, 72, (7, 10), bias=False),
    Case("widest head", (5, 6), 1, 128, (5, 6)),
)
