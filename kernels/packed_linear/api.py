"""Linear layers and convolutions for inference on the CPU, with weights packed for the processor."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zoo.kernels.backends import infers_natively
from zoo.kernels.packed_linear import native, reference

WIDEST = 2**16
"""Channels of a hidden layer of which a chunk is kept in the cache."""
SMALLEST_CHUNK = 48
"""Rows of a task: a map with fewer such tasks than threads is computed one layer after the other."""


def packed_mlp(
    x: torch.Tensor,
    first: tuple[torch.Tensor, torch.Tensor],
    second: tuple[torch.Tensor, torch.Tensor],
    hidden: int,
    outputs: int,
    act: str,
) -> torch.Tensor:
    """second(act(first(x))) of two linear layers, given as the panels and biases of `pack`.

    Args:
        x: (B, H, W, channels).
        hidden, outputs: outputs of the first and of the second layer.
        act, and where it runs: as for `packed_conv`.

    Returns:
        (B, H, W, outputs), contiguous.

    Raises:
        ValueError: if the shapes do not agree, or there is no such activation.
    """
    whole = (
        act != "none"
        and hidden <= WIDEST
        and outputs > 0
        and infers_natively(x, *first, *second)
        and _is_readable(*first)
        and _is_readable(*second)
    )
    if not whole or first[0].dtype != second[0].dtype or x.shape[:3].numel() < SMALLEST_CHUNK * torch.get_num_threads():
        return packed_conv(packed_conv(x, *first, hidden, act=act), *second, outputs)
    _check(x, *first, hidden, (1, 1), act)
    _check(x.new_empty(0, 1, 1, hidden), *second, outputs, (1, 1), "none")
    return native.packed_mlp(x.contiguous(), first, second, hidden, outputs, act)


def pack(
    weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights in the order in which the kernel reads them.

    Args:
        weight: (outputs, channels) of a linear layer or (outputs, channels, kh, kw) of a convolution, float32.
        bias: (outputs,).
        dtype: of the numbers that are multiplied: float32, or bfloat16, for which the inputs are rounded as well. The
            sums, bias and activation are in float32 always.

    Returns:
        panels: (ceil(outputs / width), inputs, width) with inputs = kh * kw * channels, where `width` is the
            processor's; (ceil(outputs / width), ceil(inputs / 2), width, 2) for bfloat16.
        bias: (ceil(outputs / width) * width,); zeros if there is none.

    Raises:
        ValueError: for another dtype.
    """
    if weight.dtype != torch.float32 or dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"the weight is {weight.dtype}, to be packed in {dtype}: expected float32, and it or bfloat16")
    outputs, width = weight.shape[0], native.width()
    rows = weight.flatten(2).transpose(1, 2).flatten(1) if weight.ndim == 4 else weight
    missing = -outputs % width
    bias = F.pad(weight.new_zeros(outputs) if bias is None else bias, (0, missing))
    panels = F.pad(rows, (0, 0, 0, missing)).unflatten(0, (-1, width))
    if dtype == torch.bfloat16:
        panels = F.pad(panels, (0, rows.shape[1] % 2)).to(dtype).unflatten(2, (-1, 2))
    return panels.transpose(1, 2).contiguous(), bias


def unpack(panels: torch.Tensor, outputs: int, channels: int, kernel: tuple[int, int] = (1, 1)) -> torch.Tensor:
    """The weight (outputs, channels, kh, kw) that was packed."""
    rows = panels.transpose(1, 2).flatten(0, 1)[:outputs].flatten(1)[:, : kernel[0] * kernel[1] * channels]
    return rows.unflatten(1, (*kernel, channels)).permute(0, 3, 1, 2)


def packed_conv(
    x: torch.Tensor,
    panels: torch.Tensor,
    bias: torch.Tensor,
    outputs: int,
    kernel: tuple[int, int] = (1, 1),
    stride: tuple[int, int] = (1, 1),
    act: str = "none",
) -> torch.Tensor:
    """act(conv(x) + bias) without padding; a linear layer is a 1x1 convolution.

    It has no gradient: where one is wanted, under a transform or in a compiled or exported program, and for tensors
    that are not float32 on the CPU, PyTorch's own operators run on the unpacked weights.

    Args:
        x: (B, H, W, channels).
        panels, bias: of `pack`.
        outputs: channels of the result.
        kernel, stride: per axis.
        act: "none", "gelu", "gelu_tanh" or "silu".

    Returns:
        (B, h, w, outputs), contiguous.

    Raises:
        ValueError: if the shapes do not agree, or there is no such activation.
    """
    _check(x, panels, bias, outputs, kernel, act, stride)
    if not infers_natively(x, panels, bias) or not _is_readable(panels, bias):
        weight = unpack(panels, outputs, x.shape[3], kernel).to(x.dtype)
        return reference.packed_conv(x, weight, bias[:outputs].to(x.dtype), stride, act)
    side_by_side = x.stride(3) == 1 and (kernel == (1, 1) or x.stride(2) == x.shape[3])
    x = x if side_by_side else x.contiguous()
    return native.packed_conv(x, panels, bias, outputs, kernel, stride, act)


def _is_readable(panels: torch.Tensor, bias: torch.Tensor) -> bool:
    """Whether the C++ kernels of this processor read a layer, which may have come from another one or been cast."""
    if bias.dtype != torch.float32:
        return False
    if panels.ndim == 4 and not (panels.dtype == torch.bfloat16 and native.has_bfloat16()):
        return False
    return panels.shape[2] == native.width() and (panels.ndim == 4 or panels.dtype == torch.float32)


def _check(
    x: torch.Tensor,
    panels: torch.Tensor,
    bias: torch.Tensor,
    outputs: int,
    kernel: tuple[int, int],
    act: str,
    stride: tuple[int, int] = (1, 1),
) -> None:
    if min(*kernel, *stride) < 1 or outputs < 0:
        raise ValueError(f"the kernel is {kernel}, its stride {stride}, outputs are {outputs}: expected positive ones")
    if act not in reference.ACTIVATIONS:
        raise ValueError(f"act is {act!r}, expected one of {', '.join(reference.ACTIVATIONS)}")
    if not bias.is_floating_point() or not panels.is_floating_point():
        raise ValueError(f"panels are {panels.dtype} and the bias {bias.dtype}, expected those of pack")
    inputs = kernel[0] * kernel[1] * x.shape[-1]
    if x.ndim != 4 or panels.ndim not in (3, 4) or panels.shape[1] != (inputs if panels.ndim == 3 else -(-inputs // 2)):
        raise ValueError(f"x is {tuple(x.shape)}, panels {tuple(panels.shape)}: they do not fit a kernel of {kernel}")
    if not panels.shape[0] * panels.shape[2] == bias.shape[0] >= outputs:
        raise ValueError(f"panels are {tuple(panels.shape)} and the bias {tuple(bias.shape)}, for {outputs} outputs")
    if min(x.shape[1] - kernel[0], x.shape[2] - kernel[1]) < 0:
        raise ValueError(f"the map is {tuple(x.shape[1:3])}, expected at least the kernel {kernel}; pad it first")
