"""Registers every shipped variant with timm as `zoo_<variant>`; importing this module is all it takes.

`timm.create_model("zoo_davit_tiny", ...)` then builds, loads, wraps for features and publishes our models
with timm's own machinery.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from timm.models import generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import nn

from zoo.config.catalog import load_config, shipped
from zoo.models.build import build
from zoo.models.resolve import resolve
from zoo.models.variants import BACKBONE_ARGUMENTS, PREFIX, default_cfg
from zoo.weights.manifest import checkpoints

_TIMM_ARGUMENTS = ("features_only", "out_indices", "feature_cls", "pretrained_cfg", "pretrained_cfg_overlay",
                   "cache_dir", "pretrained_model_args", "pretrained_strict")  # fmt: skip
_SOURCES = {"state_dict", "file", "url", "hf_hub_id"}


def create(variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create a shipped variant from timm's arguments and configuration keys.

    Published weights are loaded by us, unless timm is given other weights or a cache directory.

    Raises:
        ConfigError: for an unknown key, or parts that do not fit together.
        CheckpointError: if weights cannot be obtained or read, or do not fit.
    """
    settings = {key: kwargs.pop(key) for key in BACKBONE_ARGUMENTS if key in kwargs}
    wrap = {key: kwargs.pop(key) for key in _TIMM_ARGUMENTS if key in kwargs}
    exportable, described = kwargs.pop("exportable", False), wrap.get("pretrained_cfg")
    overlay = dict(wrap.pop("pretrained_cfg_overlay", None) or {})
    tag = described if isinstance(described, str) else None
    others = bool(_SOURCES & overlay.keys() or described not in (None, tag) or wrap.get("cache_dir"))
    about = resolve_pretrained_cfg(PREFIX + variant, described, overlay)
    settings = {"num_classes": about.num_classes, "in_chans": about.input_size[0]} | settings
    name = f"{variant}.{tag}" if tag else variant
    resolved = resolve(name, pretrained and not others, None, kwargs, dense=True, **settings)
    if "img_size" in kwargs:
        overlay = {"input_size": (3, *resolved.config.img_size)} | overlay
    if others and pretrained:
        overlay["first_conv"] = None  # which `build` adapts
    return build(resolved, others and pretrained, exportable=exportable, pretrained_cfg_overlay=overlay, **wrap)


def _entrypoint(variant: str) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create(variant, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = PREFIX + variant
    entrypoint.__module__ = __name__
    entrypoint.__doc__ = f"The backbone `{variant}` of the zoo; see `zoo.create_model`."
    return entrypoint


def _register() -> None:
    configs = {name: load_config(name) for name in shipped()}
    tagged: dict[str, Any] = {PREFIX + c.id: default_cfg(configs[c.variant], c) for c in checkpoints()}
    plain = {PREFIX + name: default_cfg(config, None) for name, config in configs.items()}
    described = {key.partition(".")[0] for key in tagged}
    default_cfgs.update(generate_default_cfgs(tagged | {k: v for k, v in plain.items() if k not in described}))
    module = sys.modules[__name__]
    for name in shipped():
        entrypoint = _entrypoint(name)
        setattr(module, entrypoint.__name__, entrypoint)
        register_model(entrypoint)


default_cfgs: dict[str, Any] = {}
_register()
