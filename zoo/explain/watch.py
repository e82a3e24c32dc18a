"""Runs a model for inspection on one picture, in evaluation mode, and restores its state exactly."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from zoo.errors import ConfigError, Where
from zoo.kernels import use_backend
from zoo.kernels.recording import Call, recording
from zoo.nn.backbone import Backbone
from zoo.nn.block import Branch
from zoo.nn.registry import BRANCHES

VALUES = {
    "aggregated_attention": ("v", "pooled_v"),
    "global_attention": ("v",),
    "neighborhood_attention": ("v",),
    "routing_attention": ("v",),
    "window_attention": ("v",),
}
"""For each operation, the arguments whose positions its queries attend to."""


@dataclass(frozen=True)
class Watched:
    """The operations that one attention layer called for one picture.

    Attributes:
        name: of the branch, as in "stages.2.blocks.4.attn".
        module: the mixer.
        mixer: its name in configurations.
        stride: pixels of the picture per position.
        shape: (height, width) of its map.
        calls: its calls of attention operations, in order.
    """

    name: str
    module: nn.Module
    mixer: str
    stride: int
    shape: tuple[int, int]
    calls: tuple[Call, ...]

    def position(self, point: tuple[int, int]) -> tuple[int, int]:
        """(row, column) of the position that covers the pixel (x, y)."""
        (x, y), (height, width) = point, self.shape
        return min(y // self.stride, height - 1), min(x // self.stride, width - 1)


def check_point(image: Image.Image, point: tuple[int, int] | None) -> tuple[int, int]:
    """The pixel (x, y) of a picture, its centre for None.

    Raises:
        ValueError: if it lies outside.
    """
    width, height = image.size
    x, y = (width // 2, height // 2) if point is None else point
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"the point is {x},{y}, but the picture has {width} x {height} pixels: x,y from 0,0")
    return int(x), int(y)


@contextmanager
def at_rest(backbone: Backbone) -> Iterator[None]:
    """Within this context the model is in evaluation mode, eager, and no parameter requires a gradient.

    Modes, gradients and `requires_grad` are then restored for each module and parameter.
    """
    modes = [(module, module.training) for module in backbone.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in backbone.parameters()]
    try:
        with torch.compiler.set_stance("force_eager"):
            backbone.eval().requires_grad_(False)
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, wanted, gradient in parameters:
            parameter.requires_grad_(wanted)
            parameter.grad = gradient


def branches(backbone: Backbone) -> Iterator[tuple[str, Branch, int]]:
    """Name, module and pixels per position of every branch, in order."""
    strides = [1, *backbone.reductions]
    for i, stage in enumerate(backbone.stages):
        stride = strides[i if stage.after is None else stage.after + 1] * getattr(stage.embed, "reduction", 1)
        for j, block in enumerate(stage.blocks):
            for name, child in block.named_children():
                branch = cast(Branch, child)
                yield f"stages.{i}.blocks.{j}.{name}", branch, stride
                stride *= branch.reduction


def watch(backbone: Backbone, pixels: torch.Tensor, names: Collection[str]) -> list[Watched]:
    """The attention layers among the branches `names`, with what they called for `pixels`, (1, C, H, W)."""
    seen: list[Watched] = []
    with at_rest(backbone), torch.no_grad(), recording() as calls, ExitStack() as hooks:
        for name, branch, stride in branches(backbone):
            hook = branch.fn.register_forward_hook(_note(seen, calls, name, stride, name in names))
            hooks.callback(hook.remove)
        backbone.forward_features(pixels)
    return seen


def _note(seen: list[Watched], calls: list[Call], name: str, stride: int, wanted: bool) -> Callable[..., None]:
    """A hook that takes the calls made since the last one."""

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if wanted and calls:
            mixer = next(key for key, cls in BRANCHES.items() if type(module) is cls)
            seen.append(Watched(name, module, mixer, stride, (output.shape[1], output.shape[2]), tuple(calls)))
        calls.clear()

    return hook


def chosen_branches(backbone: Backbone, layer: int | str | None) -> list[str]:
    """Names of the branches that `layer` means: all, those of a stage, or those below a module's name.

    Raises:
        ConfigError: if there are none.
    """
    names = [name for name, _, _ in branches(backbone)]
    if layer is None:
        return names
    prefix = f"stages.{layer}" if isinstance(layer, int) or layer.isdecimal() else layer
    found = [name for name in names if name == prefix or name.startswith(f"{prefix}.")]
    if not found:
        raise Where("layer").unknown(layer, names, "layer")
    return found


def attention_layers(backbone: Backbone, pixels: torch.Tensor, layer: int | str | None) -> list[Watched]:
    """The attention layers that `layer` means, with what they called.

    Raises:
        ConfigError: if `layer` names nothing, or nothing with attention.
    """
    seen = watch(backbone, pixels, chosen_branches(backbone, layer))
    if not seen:
        having = [watched.name for watched in watch(backbone, pixels, chosen_branches(backbone, None))]
        near = difflib.get_close_matches(str(layer), having, n=3, cutoff=0) or ["none has"]
        raise ConfigError(f"layer {layer!r} has no attention; the nearest that have: {', '.join(near)}")
    return seen


def weights(call: Call, queries: torch.Tensor, **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """How much of each value the queries read, by the reference operation.

    An operation is linear in its values, out[p] = sum over k of weights[p, k] v[k], so the weights are the gradient of
    its output with respect to one channel of the values.

    Args:
        call: call of an operation in `VALUES`.
        queries: (heads, H, W) weights of the queries, which the result sums over.
        changes: arguments that replace the call's own.

    Returns:
        For each argument in `VALUES` a map (heads, h, w).
    """
    given: dict[str, Any] = {key: _exact(value) for key, value in (call.arguments | changes).items()}
    values = {name: torch.zeros_like(given[name][..., :1]).requires_grad_() for name in VALUES[call.name]}
    with torch.enable_grad(), torch.autocast(queries.device.type, enabled=False), use_backend("reference"):
        read = {name: value.expand_as(given[name]) for name, value in values.items()}
        out = call.again(**given | read)[0, ..., 0].permute(2, 0, 1)
    found = torch.autograd.grad(out, list(values.values()), queries.to(out))
    return {name: grad[0, ..., 0].permute(2, 0, 1) for name, grad in zip(values, found, strict=True)}


def _exact(value: object) -> object:
    """Tensors of half precision in float32; everything else as it is."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))


def unpool(coarse: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A map (h, w) over the positions of a finer one: each spreads evenly over those that average pooling gives it."""
    with torch.enable_grad():
        fine = coarse.new_zeros(1, 1, *shape).requires_grad_()
        pooled = F.adaptive_avg_pool2d(fine, (coarse.shape[0], coarse.shape[1]))
        return torch.autograd.grad(pooled, fine, coarse[None, None])[0][0, 0]
