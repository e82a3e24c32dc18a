"""The shapes of neighborhood attention in real variants at their own image size, and edge cases.

One list for tests, benchmarks and documentation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """A call: map (height, width), heads, head_dim, size of a window, dilation, whether there is a bias."""

    name: str
    shape: tuple[int, int]
    heads: int
    head_dim: int
    size: tuple[int, int] = (7, 7)
    dilation: tuple[int, int] = (1, 1)
    bias: bool = True

    def tensors(
        self, batch: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> dict[str, torch.Tensor]:
        """Random arguments of a dtype and on a device; None for PyTorch's defaults."""
        q, k, v = torch.randn(batch, *self.shape, 3, self.heads, self.head_dim, dtype=dtype, device=device).unbind(3)
        table = (
            {"bias": torch.randn(self.heads, *(2 * n - 1 for n in self.size), dtype=dtype, device=device)}
            if self.bias
            else {}
        )
        return {"q": q, "k": k, "v": v, **table}

    def settings(self) -> dict[str, tuple[int, int]]:
        """The other arguments."""
        return {"size": self.size, "dilation": self.dilation}


MODELS = (
    Case("nat_tiny stage 0", (56, 56), 2, 32),
    Case("nat_tiny stage 1", (28, 28), 4, 32),
    Case("nat_tiny stage 2", (14, 14), 8, 32),
    Case("nat_tiny stage 3", (7, 7), 16, 32),
    Case("dinat_tiny stage 0", (56, 56), 2, 32, dilation=(8, 8)),
    Case("dinat_base stage 1", (28, 28), 8, 32, dilation=(4, 4)),
    Case("dinat_base stage 2", (14, 14), 16, 32, dilation=(2, 2)),
    Case("dinat_large_384 stage 2", (24, 24), 24, 32, dilation=(3, 3)),
    Case("dinat_large_384_11x11 stage 2", (24, 24), 24, 32, (11, 11), (2, 2)),
    Case("dinat_isotropic_small", (14, 14), 12, 32, dilation=(2, 2)),
)
AWKWARD = (
    Case("odd map", (9, 13), 2, 16, (3, 3)),
    Case("exactly one window", (7, 7), 1, 8),
    Case("length no multiple of the dilation", (11, 17), 2, 8, (3, 3), (3, 5)),
    Case("oblong window", (8, 12), 1, 8, (3, 5), (2, 1)),
    Case("no bias", (8, 9), 2, 24, (5, 5), bias=False),
    Case("one key", (4, 3), 1, 8, (1, 1)),
    Case("largest window", (15, 13), 1, 72, (13, 13)),
    Case("wide head", (5, 9), 2, 96, (3, 7), (1, 1)),
    Case("borders that many see", (13, 13), 1, 32),
    Case("48 channels", (6, 7), 1, 48, (3, 3), (2, 1)),
)
