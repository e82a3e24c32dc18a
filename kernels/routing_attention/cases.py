"""The shapes of routing attention in real variants at their own image size, and edge cases.

One list for tests, benchmarks and documentation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zoo.kernels.routing_attention.reference import region_routes


@dataclass(frozen=True)
class Case:
    """A call: map (height, width), heads, head_dim, region (height, width), regions to attend."""

    name: str
    shape: tuple[int, int]
    heads: int
    head_dim: int
    region: tuple[int, int]
    topk: int

    def tensors(
        self, batch: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> dict[str, torch.Tensor]:
        """Random arguments of a dtype, if floating-point, and on a device; None for PyTorch's defaults."""
        q, k, v = torch.randn(batch, *self.shape, 3, self.heads, self.head_dim, dtype=dtype, device=device).unbind(3)
        return {"q": q, "k": k, "v": v, "routes": region_routes(q, k, self.region, self.topk)}

    def settings(self) -> dict[str, tuple[int, int]]:
        """The other arguments."""
        return {"region": self.region}


MODELS = (
    Case("biformer_tiny stage 0", (56, 56), 2, 32, (8, 8), 1),
    Case("biformer_tiny stage 1", (28, 28), 4, 32, (4, 4), 4),
    Case("biformer_tiny stage 2", (14, 14), 8, 32, (2, 2), 16),
    Case("biformer_base stage 0", (56, 56), 3, 32, (8, 8), 1),
    Case("biformer_base stage 1", (28, 28), 6, 32, (4, 4), 4),
    Case("biformer_base stage 2", (14, 14), 12, 32, (2, 2), 16),
    Case("hybrid_neighborhood_routing_global stage 2", (16, 16), 8, 32, (2, 2), 8),
)
AWKWARD = (
    Case("odd map", (9, 13), 2, 16, (3, 4), 2),
    Case("one position a region", (4, 3), 1, 8, (1, 1), 5),
    Case("one region", (5, 6), 2, 8, (5, 6), 1),
    Case("fewer regions than asked for", (4, 4), 1, 8, (2, 2), 9),
    Case("one position a region, few chosen", (5, 7), 1, 8, (1, 1), 2),
    Case("small regions beyond the map", (7, 9), 2, 48, (2, 2), 6),
    Case("region of several tiles", (9, 11), 1, 24, (9, 8), 2),
    Case("region larger than the map", (5, 3), 1, 16, (8, 8), 1),
    Case("wide head", (6, 9), 1, 96, (3, 3), 4),
    Case("wider head, small regions", (5, 6), 2, 72, (2, 2), 9),
)
