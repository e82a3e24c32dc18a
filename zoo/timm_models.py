"""Registers every shipped variant with timm as `zoo_<variant>`; importing this module is all it takes.

`timm.create_model("zoo_davit_tiny", ...)` then builds, loads, wraps for features and publishes our models
with timm's own machinery.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from threading import get_ident
from typing import Any

import torch
from timm.layers import Format, is_exportable
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from zoo.config.catalog import load_config, shipped
from zoo.config.model import ModelConfig
from zoo.errors import CheckpointError, ConfigError
from zoo.nn.backbone import Backbone
from zoo.nn.embeds import input_convolutions
from zoo.weights.convert import Part
from zoo.weights.files import as_state_dict
from zoo.weights.load import fit, nonfinite
from zoo.weights.manifest import Checkpoint, checkpoints, default_checkpoint
from zoo.weights.store import tensors_of

PREFIX = "zoo_"
_MOST_NUMBERS = 1e9
"""Of parameters and buffers, in all; twice what the largest shipped variant has."""
_MOST_BLOCKS = 512
BACKBONE_ARGUMENTS = ("num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate", "level_norm")
_TIMM_ARGUMENTS = ("features_only", "out_indices", "feature_cls", "pretrained_cfg", "pretrained_cfg_overlay",
                   "cache_dir", "pretrained_model_args", "pretrained_strict")  # fmt: skip
CLASSIFIER = "head.fc"
LEVEL_NORMS = "level_norms."


def first_convolutions(config: ModelConfig) -> tuple[str, ...]:
    """Names of the convolutions that see the image."""
    return tuple(f"stages.0.embed.{name}" for name in input_convolutions(config.stages[0].embed))


def adaptable(config: ModelConfig) -> tuple[str, ...]:
    """Names of the parameters that timm adapts to another number of channels or classes."""
    return (*(f"{name}.weight" for name in first_convolutions(config)), f"{CLASSIFIER}.weight", f"{CLASSIFIER}.bias")


def channels_of(part: Part, config: ModelConfig) -> int:
    """How many channels the images of a checkpoint have; 3 where it does not tell."""
    pieces = (piece for name in first_convolutions(config) for piece in part.pieces.get(f"{name}.weight", ()))
    return next((part.state[piece.key].shape[1] for piece in pieces if part.state[piece.key].ndim == 4), 3)


def with_channels(tensors: Mapping[str, torch.Tensor], config: ModelConfig, channels: int) -> dict[str, torch.Tensor]:
    """The tensors of a variant for images of so many channels: repeated, or summed up for one, at the same scale."""
    adapted = dict(tensors)
    for name in (f"{name}.weight" for name in first_convolutions(config)):
        weight = tensors[name]
        given = weight.shape[1]
        if given == channels:
            continue
        if channels == 1:
            adapted[name] = weight.sum(1, keepdim=True)
        else:
            repeated = weight.repeat(1, -(-channels // given), *(1 for _ in weight.shape[2:]))
            adapted[name] = repeated[:, :channels] * (given / channels)
    return adapted


class FeaturePyramid(FeatureGetterNet):
    """timm's feature wrapper around a `Backbone`, which also takes the mask of a padded batch.

    `feature_info` tells channels, reductions and modules of the maps.
    """

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Images (B, in_chans, H, W) to one map (B, C, H / stride, W / stride) a level, fine to coarse.

        Args:
            mask: (B, H, W), true where a pixel is of the image, as for `Backbone.forward_intermediates`.
        """
        fmt = "NHWC" if self.output_fmt == Format.NHWC else "NCHW"
        return self.model.forward_intermediates(
            x, self.out_indices, self.norm, output_fmt=fmt, intermediates_only=True, mask=mask
        )


def build(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A model by timm's builder; `name` as for `zoo.create_model`, with timm's arguments beside configuration keys.

    Raises:
        ConfigError: for an unknown name or key.
    """
    settings = {key: kwargs.pop(key) for key in BACKBONE_ARGUMENTS if key in kwargs}
    timm_settings = {key: kwargs.pop(key) for key in _TIMM_ARGUMENTS if key in kwargs}
    if timm_settings.get("feature_cls") in ("hook", "list", "dict", "fx"):
        raise ConfigError(
            f"feature_cls is {timm_settings['feature_cls']!r}, but a zoo model is more than its modules in turn: "
            "leave it out, features_only=True gives the same maps"
        )
    exportable = kwargs.pop("exportable", False) or is_exportable()
    config = load_config(name, kwargs)
    if kwargs or name not in shipped():
        sizes = ("num_classes", "in_chans", "level_norm")
        _check_memory(config, {key: settings[key] for key in sizes if key in settings})
    if name in shipped():
        resized = {"input_size": (3, *config.img_size)} if "img_size" in kwargs else {}
        timm_settings["pretrained_cfg_overlay"] = resized | (timm_settings.get("pretrained_cfg_overlay") or {})
        if pretrained:
            timm_settings["pretrained_cfg_overlay"] |= _weights(name, timm_settings)
    else:
        timm_settings.setdefault("pretrained_cfg", default_cfg(config, None))
    normed = {"norm": True} if settings.get("level_norm") else {}
    overlay = timm_settings.get("pretrained_cfg_overlay") or {}
    tensors = overlay.get("state_dict")
    if tensors is not None:  # timm copies what stands there several times
        timm_settings["pretrained_cfg_overlay"] = overlay | {"state_dict": {"see": "pretrained_filter_fn"}}
    if pretrained:  # channels are adapted by `_filter`
        timm_settings["pretrained_cfg_overlay"] = (timm_settings.get("pretrained_cfg_overlay") or {}) | {
            "first_conv": None
        }
    model = build_model_with_cfg(
        partial(Backbone, config, ready=tensors),
        PREFIX + config.name,
        pretrained,
        pretrained_filter_fn=_filter if tensors is None else lambda _, model: _filter(tensors, model),
        feature_cfg={"out_indices": tuple(range(len(config.stages))), "feature_cls": FeaturePyramid} | normed,
        **settings,
        **timm_settings,
    )
    reduction = getattr(model, "model", model).feature_info[-1]["reduction"]
    for module in {model, getattr(model, "model", model)}:
        module.pretrained_cfg.pop("state_dict", None)
        module.pretrained_cfg["first_conv"] = default_cfg(config, None)["first_conv"]
        module.pretrained_cfg["pool_size"] = tuple(-(-n // reduction) for n in config.img_size)
    for stage in getattr(model, "model", model).stages:
        stage.exportable = exportable
    return model


def _weights(variant: str, timm_settings: Mapping[str, Any]) -> dict[str, Any]:
    """The published tensors of a variant, unless timm was told of others or of a cache of its own."""
    tag = timm_settings.get("pretrained_cfg")
    given = {"state_dict", "file", "url", "hf_hub_id"} & timm_settings["pretrained_cfg_overlay"].keys()
    if given or not isinstance(tag, str | None) or timm_settings.get("cache_dir"):
        return {}
    entry = default_checkpoint(variant, tag)
    if entry is None:
        raise CheckpointError(f"{variant}: there is no published checkpoint of it; load one with zoo.load_checkpoint")
    return {"state_dict": published_tensors(entry)}


def published_tensors(entry: Checkpoint) -> dict[str, torch.Tensor]:
    """A published checkpoint under our names, fetched and converted the first time.

    Raises:
        CheckpointError: if it cannot be had, read or converted.
    """
    form = hashlib.sha256(repr(load_config(entry.variant).checkpoints).encode()).hexdigest()

    def convert(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors = as_published(state, entry)
        nonfinite(tensors)
        return tensors

    return tensors_of(entry, form, convert)


def as_published(state: Mapping[str, torch.Tensor], entry: Checkpoint) -> dict[str, torch.Tensor]:
    """A state dict under our names, if it has exactly the tensors of a published checkpoint.

    Raises:
        CheckpointError: if it has not.
    """
    config = load_config(entry.variant)
    return fit(state, config.checkpoints, meta_state(config, num_classes=entry.num_classes))[0]


def meta_state(
    config: ModelConfig, in_chans: int = 3, num_classes: int = 1000, level_norm: bool = False
) -> dict[str, torch.Tensor]:
    """Names and shapes of a whole variant, without memory behind them."""
    with torch.device("meta"):
        return Backbone(config, num_classes, in_chans, level_norm=level_norm).state_dict()


def _check_memory(config: ModelConfig, settings: Mapping[str, Any]) -> None:
    """Refuse a model that is too large before its memory is asked for, and before all of it is described."""
    blocks = sum(len(stage.blocks) for stage in config.stages)
    if blocks > _MOST_BLOCKS:
        raise ConfigError(f"{config.where}: {blocks} blocks in all stages, expected at most {_MOST_BLOCKS}")
    numbers, thread = 0, get_ident()

    def count(module: nn.Module, name: str, value: torch.Tensor | None) -> None:
        nonlocal numbers
        if value is None or get_ident() != thread:  # the hooks are of all threads
            return
        numbers += value.numel()
        if numbers > _MOST_NUMBERS:
            raise ConfigError(
                f"{config.where}: {numbers:.2g} parameters or more, expected at most {_MOST_NUMBERS:.2g}: "
                "smaller widths, ratios, kernels or windows, or fewer blocks"
            )

    handles = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        with torch.device("meta"):
            Backbone(config, **settings)
    finally:
        for handle in handles:
            handle.remove()


def default_cfg(config: ModelConfig, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """timm's description of a model and its weights."""
    cfg = {
        "input_size": (3, *config.img_size),
        "first_conv": first[0] if len(first := first_convolutions(config)) == 1 else first or None,
        "classifier": CLASSIFIER,
    }
    if checkpoint is None:
        return cfg
    return cfg | {
        "url": checkpoint.sources[0] if checkpoint.host == "direct" else None,
        "hf_hub_id": checkpoint.hub,
        "hf_hub_filename": checkpoint.file if checkpoint.hub else None,
        "num_classes": checkpoint.num_classes,
        "mean": checkpoint.mean,
        "std": checkpoint.std,
        "interpolation": checkpoint.interpolation,
        "crop_pct": checkpoint.crop_pct,
        "crop_mode": checkpoint.crop_mode,
        "license": checkpoint.licence_weights,
        "origin_url": checkpoint.code,
        "paper_ids": checkpoint.paper.replace("https://arxiv.org/abs/", "arXiv:"),
    }


def _filter(state: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Any published form of a checkpoint under our keys, with the model's own norms of levels and channels."""
    own = model.state_dict()
    levels = {name: value for name, value in own.items() if name.startswith(LEVEL_NORMS)}
    tensors = fit(as_state_dict(state), model.config.checkpoints, own, adaptable(model.config), levels)[0]
    return levels | with_channels(tensors, model.config, model.in_chans)


def _entrypoint(variant: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(variant, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = PREFIX + variant
    create.__module__ = __name__
    create.__doc__ = f"The backbone `{variant}` of the zoo; see `zoo.create_model`."
    return create


def _register() -> None:
    configs = {name: load_config(name) for name in shipped()}
    tagged = {PREFIX + c.id: default_cfg(configs[c.variant], c) for c in checkpoints()}
    plain = {PREFIX + name: default_cfg(config, None) for name, config in configs.items()}
    described = {key.partition(".")[0] for key in tagged}
    default_cfgs.update(generate_default_cfgs(tagged | {k: v for k, v in plain.items() if k not in described}))
    module = sys.modules[__name__]
    for name in shipped():
        create = _entrypoint(name)
        setattr(module, create.__name__, create)
        register_model(create)


default_cfgs: dict[str, Any] = {}
_register()
