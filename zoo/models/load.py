"""Loads checkpoints into existing models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from os import PathLike

import torch
from torch import nn

from zoo.config.catalog import load_config
from zoo.errors import CheckpointError, ConfigError
from zoo.models.limits import on_meta
from zoo.models.variants import DENSE_LACKS, LEVEL_NORMS, StateDict, adaptable, shapes_of, split_tag
from zoo.nn.backbone import Backbone
from zoo.weights.convert import Optional, Part
from zoo.weights.files import as_state_dict, find
from zoo.weights.load import LoadReport, convert_and_check, nonfinite


def convert_checkpoint(state_dict: StateDict, name: str) -> dict[str, torch.Tensor]:
    """A published state dict of the variant `name` under our names, ready for `load_state_dict(strict=True)`.

    Every published format of the variant, and ours, is recognised by its keys, whatever their prefix. From a detector,
    segmenter or pyramid, the backbone and any `level_norms` are taken, for the model inside
    `create_model(..., features_only=True)`.

    Raises:
        CheckpointError: if keys or shapes do not fit; the classifier may have any number of classes and the
            first convolution any number of channels.
        ConfigError: for an unknown name.
    """
    config, state = load_config(split_tag(name)[0]), as_state_dict(state_dict)
    return convert_and_check(
        state, config.checkpoints, shapes_of(config, on_meta(config)), adaptable(config), may_lack()
    )[0]


def load_checkpoint(model: nn.Module, source: str | PathLike[str] | StateDict, use_ema: bool = True) -> LoadReport:
    """Load a checkpoint into `model`, in any published format of its variant or in ours.

    Weights for parts that the model lacks (classifier, pruned stages, norms of levels) are dropped and reported.
    Relative position tables for another window are interpolated and reported. Keys with a prefix, as in detectors and
    training scripts, are found by their names, and the prefix is reported. Everything else must fit.

    Args:
        model: made by `zoo.create_model` or `timm.create_model("zoo_...")`.
        source: a `.pth`, `.pth.tar`, `.ckpt`, `.bin` or `.safetensors` file, or a state dict.
        use_ema: load the moving average if a checkpoint has both it and the trained weights.

    Raises:
        CheckpointError: if the file cannot be read or does not fit; the model is then left as it was.
        ConfigError: if `model` is not a model of the zoo.
    """
    found, backbone = find(source, use_ema), backbone_of(model)
    config, own = backbone.config, backbone.state_dict()
    whole = on_meta(config, num_classes=backbone.num_classes or 1000, in_chans=backbone.in_chans)
    targets = shapes_of(config, whole)
    absent = {name for name in targets if name not in own}
    tensors, report = convert_and_check(
        found.tensors, config.checkpoints, targets, dict.fromkeys(absent), may_lack(absent, dense=False)
    )
    loaded = {name: value for name, value in tensors.items() if name in own}
    fresh = {name: value for name, value in own.items() if name not in loaded}
    if any(value.is_meta and not own[name].is_meta for name, value in loaded.items()):
        raise CheckpointError("the checkpoint is on the meta device, which holds no numbers: load one with values")
    wrong = nonfinite(loaded)
    backbone.load_state_dict(fresh | loaded, strict=True)
    dropped = (*report.dropped, *(name for name in tensors if name in absent))
    return dataclasses.replace(
        report, loaded=tuple(loaded), dropped=dropped, nonfinite=wrong, fresh=tuple(fresh), part=found.part
    )


def may_lack(absent: Iterable[str] = (), dense: bool = True) -> Optional:
    """What a checkpoint may lack: norms of levels, what is `absent` from the model, and, where a checkpoint without a
    classifier will do as `dense` features, what detectors are built without."""

    def beginnings(part: Part) -> tuple[str, ...]:
        return (LEVEL_NORMS, *absent, *(DENSE_LACKS if dense and not part.has_classifier() else ()))

    return beginnings


def backbone_of(model: nn.Module) -> Backbone:
    """The backbone inside compilers', data parallel and feature wrappers.

    Raises:
        ConfigError: if there is none.
    """
    inside: nn.Module | None = model
    while inside is not None and not isinstance(inside, Backbone):
        wrapped = [getattr(inside, name, None) for name in ("_orig_mod", "module", "model")]
        inside = next((module for module in wrapped if isinstance(module, nn.Module)), None)
    if inside is None:
        raise ConfigError(f"a {type(model).__name__} is not a model of the zoo: make it with zoo.create_model")
    return inside
