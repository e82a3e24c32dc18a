"""The shapes of aggregated attention in real variants at their own image size, and edge cases.

One list for tests, benchmarks and documentation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """A call: map (height, width), pooled map, heads, head_dim, side of the window."""

    name: str
    shape: tuple[int, int]
    pooled: tuple[int, int]
    heads: int
    head_dim: int = 24
    size: int = 3

    def tensors(
        self, batch: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> dict[str, torch.Tensor]:
        """Random arguments of a dtype and on a device; None for PyTorch's defaults."""
        q, k, v = torch.randn(batch, *self.shape, 3, self.heads, self.head_dim, dtype=dtype, device=device).unbind(3)
        pooled_k, pooled_v = torch.randn(
            batch, *self.pooled, 2, self.heads, self.head_dim, dtype=dtype, device=device
        ).unbind(3)
        queries, keys, taps = self.shape[0] * self.shape[1], self.pooled[0] * self.pooled[1], self.size**2
        return {
            "q": q * self.head_dim**-0.5,
            "k": k,
            "v": v,
            "pooled_k": pooled_k,
            "pooled_v": pooled_v,
            "local_bias": torch.randn(self.heads, taps, dtype=dtype, device=device),
            "pooled_bias": torch.randn(self.heads, queries, keys, dtype=dtype, device=device),
            "extra": torch.randn(batch, *self.shape, self.heads, taps, dtype=dtype, device=device),
        }

    def settings(self) -> dict[str, int]:
        """The other arguments."""
        return {"size": self.size}


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
    Case("a row", (1, 17), (1, 5), 1, 32, 5),
    Case("no window", (5, 6), (2, 2), 2, 16, 1),
    Case("more pooled keys than positions", (4, 9), (7, 11), 2, 48),
    Case("wide head", (5, 9), (3, 4), 2, 72),
    Case("wider head", (9, 5), (4, 5), 1, 96),
)
