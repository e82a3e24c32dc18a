"""Initialisation schemes, one per training recipe; parts without an entry keep their constructors' values.

A part lists in `POINTWISE` its linear layers that are 1x1 convolutions in the published code: they are initialised as
convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container

from torch import nn


def _trunc_normal(name: str, module: nn.Module, pointwise: bool) -> None:
    """Linear layers: normal of std 0.02, zero bias. Convolutions keep PyTorch's default (DaViT)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _vit_eff(name: str, module: nn.Module, pointwise: bool) -> None:
    """MaxViT in timm ("vit_eff"): convolutions normal of std sqrt(2 / fan_out); linear layers Xavier uniform.

    Biases are zero, those of an MLP normal of std 1e-6. The head keeps PyTorch's default.
    """
    if name.startswith("head.") or not isinstance(module, nn.Conv2d | nn.Linear):
        return
    if pointwise or isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / _fan_out(module)))
    else:
        nn.init.xavier_uniform_(module.weight)
    if module.bias is not None:
        in_mlp = name.endswith(("fc1", "fc2")) and not pointwise
        nn.init.normal_(module.bias, std=1e-6) if in_mlp else nn.init.zeros_(module.bias)


def _trunc_normal_head(name: str, module: nn.Module, pointwise: bool) -> None:
    """As "trunc_normal" where every linear layer but the classifier is a 1x1 convolution (BiFormer-STL, NCHW)."""
    if name == "head.fc":
        _trunc_normal(name, module, pointwise)


def _trunc_normal_fan_out(name: str, module: nn.Module, pointwise: bool) -> None:
    """Linear layers as "trunc_normal"; convolutions normal of std sqrt(2 / fan_out), zero bias (TransNeXt)."""
    if isinstance(module, nn.Conv2d) or (pointwise and isinstance(module, nn.Linear)):
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / _fan_out(module)))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        _trunc_normal(name, module, pointwise)


def _fan_out(module: nn.Conv2d | nn.Linear) -> int:
    return module.weight.numel() // module.weight.shape[1] // getattr(module, "groups", 1)


SCHEMES: dict[str, Callable[[str, nn.Module, bool], None]] = {
    "trunc_normal": _trunc_normal,
    "trunc_normal_head": _trunc_normal_head,
    "trunc_normal_fan_out": _trunc_normal_fan_out,
    "vit_eff": _vit_eff,
}


def initialise(model: nn.Module, scheme: str, ready: Container[str] = ()) -> None:
    """Initialise every layer of `model` by the named scheme, except layers whose parameters are all `ready`."""
    pointwise = {
        f"{name}.{child}" for name, module in model.named_modules() for child in getattr(module, "POINTWISE", ())
    }
    for name, module in model.named_modules():
        if not all(key in ready for key, _ in module.named_parameters(name, recurse=False)):
            SCHEMES[scheme](name, module, name in pointwise)
