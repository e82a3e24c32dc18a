"""`zoo.optimize`: a copy of a model for inference that is as fast as this processor allows."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from zoo.errors import ConfigError
from zoo.kernels.depthwise_conv import native as depthwise
from zoo.kernels.native import why_not
from zoo.kernels.packed_linear.native import has_bfloat16
from zoo.models.edit import fuse
from zoo.models.load import backbone_of
from zoo.models.tactics import Tactics
from zoo.nn.backbone import Backbone
from zoo.nn.embeds import DeformConv2d
from zoo.nn.layers.hooks import is_hooked
from zoo.nn.layers.packed import PackedConv, PackedDeformConv, PackedDepthwise, PackedLayerNorm
from zoo.nn.layers.per_weights import has_table

_logger = logging.getLogger(__name__)
DTYPES = (torch.float32, torch.bfloat16)
FEW = 4
"""Images of the batch on which parts are tried."""
WORTHWHILE = 32
"""Images: fewer are through before the layers are packed."""


def optimize(model: nn.Module, *, dtype: torch.dtype = torch.float32, example: torch.Tensor | None = None) -> nn.Module:
    """A copy for inference on the CPU: the same outputs for images of any size, in less time.

    Batch norms are folded (`zoo.fuse`), the weights of linear layers and convolutions are packed for the processor, and
    their bias and activation are computed along with the product. Where PyTorch's own layer is faster on this machine,
    it stays: what is faster is measured once for the shapes of `example` and kept beside the built kernels. So is
    whether a stage runs a batch at once or in parts whose maps stay in the cache.

    With bfloat16, the products of linear layers and convolutions take numbers of that precision and are summed in
    float32; everything between them, and what the model takes and returns, stays float32. The logits then differ by
    about 1 % of their spread.

    The copy has no gradients, and its state dict is another: save the model before. What was done is logged, and in
    `optimized` of the copy, a count of layers for each of the things that were done to them.

    Args:
        model: of `zoo.create_model`, on the CPU.
        dtype: of the numbers that are multiplied: float32 or bfloat16.
        example: images (B, in_chans, H, W) as they will be; one of the training size if not given.

    Raises:
        ConfigError: if this is not a model of the zoo, it or `example` is not in float32 on the CPU, for an example of
            another shape, another dtype, or bfloat16 on a processor without products of it.
    """
    backbone = backbone_of(model)
    if dtype not in DTYPES:
        raise ConfigError(f"optimize: dtype is {dtype}, expected one of {', '.join(map(str, DTYPES))}")
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            raise ConfigError(
                f"optimize: {name} is {parameter.dtype} on {parameter.device}, expected torch.float32 on the CPU: "
                "take model.float().cpu(), and for a GPU torch.compile"
            )
    reason = why_no(dtype)
    if reason and not why_not():
        raise ConfigError(f"optimize: {reason}; take dtype=torch.float32")
    copied = fuse(model).requires_grad_(False)
    if reason:
        _logger.warning("optimize: only batch norms are folded, because %s", reason)
        return _described(copied, Counter())
    example = _images(backbone) if example is None else example
    _check_example(example, backbone.in_chans)
    return _described(copied, _swap(copied, example, dtype))


def optimize_for(images: int, model: nn.Module, batch: int = 1) -> nn.Module:
    """`optimize`, if the model can be and as many images pay for it, else the model itself.

    Args:
        images: that are going to be seen.
        batch: images at once.
    """
    plain = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
    if images < WORTHWHILE or not plain or why_no():
        return model
    backbone = backbone_of(model)
    return optimize(model, example=_images(backbone, batch))


def why_no(dtype: torch.dtype = torch.float32, device: str = "cpu") -> str:
    """Why layers cannot be packed for a dtype and a kind of device; empty if they can."""
    if device != "cpu":
        return "packed layers are for the CPU"
    if dtype not in DTYPES:
        return f"layers are not packed in {dtype}"
    if reason := why_not():
        return reason
    if dtype == torch.bfloat16 and not has_bfloat16():
        return "this processor does not multiply bfloat16 numbers (AVX512-BF16), so that float32 is faster"
    return ""


def _check_example(x: torch.Tensor, channels: int) -> None:
    if x.ndim != 4 or x.shape[1] != channels or not x.numel():
        raise ConfigError(f"optimize: example is {tuple(x.shape)}, expected images (B, {channels}, H, W)")
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise ConfigError(f"optimize: example is {x.dtype} on {x.device}, expected torch.float32 on the CPU")


def _images(backbone: Backbone, batch: int = 1) -> torch.Tensor:
    """Images of the training size, independent of the default dtype and device."""
    return torch.zeros(batch, backbone.in_chans, *backbone.config.img_size, dtype=torch.float32, device="cpu")


def _described(model: nn.Module, done: Counter[str]) -> nn.Module:
    model.optimized = dict(done)  # type: ignore[assignment]
    _logger.info("optimize: %s", ", ".join(f"{count} {what}" for what, count in done.items()) or "nothing else")
    return model


@torch.no_grad()
def _swap(model: nn.Module, example: torch.Tensor, dtype: torch.dtype) -> Counter[str]:
    """Replace layers by their packed forms where these are faster on what the layer gets from `example`."""
    done: Counter[str] = Counter()
    inputs = _inputs(model, example)
    tactics = Tactics()
    for name, layer in list(model.named_modules()):
        packed = _PACKED.get(type(layer))
        if packed is None or layer not in inputs:
            continue
        if reason := _why_not_packed(layer):
            done[f"{type(layer).__name__} left as it is, {reason}"] += 1
            continue
        twin = packed(layer, dtype)
        if tactics.is_faster(twin, layer, inputs[layer]):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, twin)
            done[f"{type(layer).__name__} packed{_kind(twin)}"] += 1
        else:
            done[f"{type(layer).__name__} left as it is, which is faster here"] += 1
    for stage in (stage for stage in backbone_of(model).stages if stage.context is None):
        stage.images_at_once = tactics.images_at_once(stage, torch.cat([inputs[stage][0][:1]] * FEW))
    tactics.keep()
    return done


def _kind(twin: nn.Module) -> str:
    panels = getattr(twin, "panels", None)
    return " in bfloat16" if panels is not None and panels.dtype == torch.bfloat16 else ""


def _inputs(model: nn.Module, example: torch.Tensor) -> dict[nn.Module, tuple[torch.Tensor, ...]]:
    """What stages and layers that could be packed get; without layers that compute tables, which are cached."""
    tables = {layer for module in model.modules() if has_table(module) for layer in module.modules()}
    seen: dict[nn.Module, tuple[torch.Tensor, ...]] = {}

    def see(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.setdefault(layer, inputs)

    layers = [m for m in model.modules() if type(m) in _PACKED and m not in tables]
    layers += backbone_of(model).stages
    handles = [layer.register_forward_pre_hook(see) for layer in layers]
    try:
        model(example)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _why_not_packed(layer: nn.Module) -> str:
    if is_hooked(layer) or "forward" in layer.__dict__:
        return "it is hooked"
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1 and (layer.groups != layer.in_channels or layer.in_channels != layer.out_channels):
            return "it is grouped"
        if layer.groups != 1 and (reason := _why_not_depthwise(layer)):
            return reason
        if layer.dilation != (1, 1) or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return "it is dilated or padded otherwise than by zeros"
    if isinstance(layer, nn.LayerNorm) and (len(layer.normalized_shape) != 1 or layer.bias is None):
        return "it has another shape"
    return ""


def _why_not_depthwise(layer: nn.Conv2d) -> str:
    if layer.kernel_size[0] != layer.kernel_size[1] or layer.stride[0] != layer.stride[1]:
        return "it is not square"
    return depthwise.limit(layer.in_channels, layer.kernel_size[0], layer.stride[0])


def _conv(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    assert isinstance(layer, nn.Conv2d)
    return PackedConv(layer, dtype) if layer.groups == 1 else PackedDepthwise(layer)


def _layer_norm(layer: nn.Module, _: torch.dtype) -> nn.Module:
    assert isinstance(layer, nn.LayerNorm)
    packed = PackedLayerNorm(layer.normalized_shape, layer.eps).eval()
    packed.weight, packed.bias = layer.weight, layer.bias
    return packed


_PACKED: dict[type[nn.Module], Callable[..., nn.Module]] = {
    DeformConv2d: PackedDeformConv,
    nn.Linear: PackedConv,
    nn.Conv2d: _conv,
    nn.LayerNorm: _layer_norm,
}
