"""Linear layers on contiguous (B, H, W, C) tensors."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from zoo.kernels.exporting import exporting
from zoo.kernels.sizes import always


class Linear(nn.Linear):
    """`nn.Linear` over the channels of (B, H, W, C).

    On the CPU it runs as a 1x1 convolution of the permuted tensor: the same product of the same numbers, but
    computed by oneDNN instead of the BLAS that PyTorch was built with, up to 2.5 times as fast.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.apply_weight(x, self.weight, self.bias)

    def in_parts(self, x: torch.Tensor, parts: int) -> list[torch.Tensor]:
        """The output as contiguous tensors of equal width."""
        weights = zip(self.weight.chunk(parts), self.bias.chunk(parts), strict=True)
        return [self.apply_weight(x, weight, bias) for weight, bias in weights]

    def apply_weight(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The layer with another weight and bias."""
        elsewhere = exporting() or x.device.type != "cpu" or x.dtype == torch.float64
        if elsewhere or x.ndim != 4 or _mostly_weight(x, weight):
            return F.linear(x, weight, bias)
        tokens = _without_unit_batch(x) if torch.compiler.is_compiling() else x
        out = F.conv2d(tokens.permute(0, 3, 1, 2), weight[:, :, None, None], bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:3], weight.shape[0])


def _mostly_weight(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether, in training, so few positions meet so large a weight that oneDNN's rearranging of it costs too much."""
    return torch.is_grad_enabled() and weight.numel() >= 2**20 and always(x.shape[0] * x.shape[1] * x.shape[2] < 64)


def _without_unit_batch(x: torch.Tensor) -> torch.Tensor:
    """One map (1, H, W, C) as a batch of two halves, if it has an even side.

    Inductor gives an axis of length 1 the stride 0; oneDNN then does not see that the tensor is channels_last
    and copies it. Which positions form a batch does not matter to a product over channels.
    """
    batch, height, width, channels = x.shape
    if batch != 1 or not always(max(height, width) >= 4):
        return x
    if always(height % 2 == 0):
        return x.reshape(2, height // 2, width, channels)
    return x.reshape(2, height, width // 2, channels) if always(width % 2 == 0) else x


class Pointwise(Linear):
    """A 1x1 convolution: a linear layer, initialised as a convolution."""


class HeadsLinear(Linear):
    """(B, H, W, dim) to `parts` tensors (B, H, W, heads, head_dim); rows ordered (parts, heads, head_dim).

    Args:
        heads: as many as fill the width when None.
    """

    def __init__(self, dim: int, head_dim: int, parts: int = 3, heads: int | None = None, bias: bool = True) -> None:
        if dim % head_dim:
            raise ValueError(f"head_dim {head_dim} does not divide the width {dim}")
        self.parts, self.heads, self.head_dim = parts, heads or dim // head_dim, head_dim
        super().__init__(dim, parts * self.heads * head_dim, bias=bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return super().forward(x).unflatten(-1, (self.parts, self.heads, self.head_dim)).unbind(-3)
