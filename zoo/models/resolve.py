"""Resolves a name to a configuration and matching weights: each is parsed, read, converted and built once.

A model with weights is built on the meta device, without initialising or copying anything, and adopts their tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import torch

from zoo.config.catalog import file_of, load_config
from zoo.config.model import ModelConfig
from zoo.errors import CheckpointError
from zoo.models import stored
from zoo.models.described import check_counts
from zoo.models.limits import on_meta
from zoo.models.load import may_lack
from zoo.models.published import published_tensors
from zoo.models.variants import (
    CLASSIFIER,
    StateDict,
    adaptable,
    first_convolutions,
    shapes_of,
    split_tag,
    with_channels,
)
from zoo.nn.backbone import Backbone
from zoo.nn.init import initialise
from zoo.weights.convert import Optional
from zoo.weights.files import Found, find
from zoo.weights.load import convert_and_check, nonfinite
from zoo.weights.manifest import Checkpoint, default_checkpoint


@dataclass(frozen=True)
class Resolved:
    """What a name, weights and overrides stand for.

    Attributes:
        settings: arguments of the `Backbone`; classes and channels default to those of the weights.
        tensors: weights under our names that fit `config`; None for random initialisation.
        classes, channels: numbers in the weights; None if unknown.
        described: the input transform and similar facts, in timm's terms, in addition to the variant's own.
        entry: the published checkpoint that the weights are.
        blueprint: if there are weights, the model on the meta device, which `assemble` turns into a real one.
    """

    config: ModelConfig
    settings: Mapping[str, Any]
    tensors: StateDict | None = None
    classes: int | None = None
    channels: int | None = None
    described: Mapping[str, Any] = field(default_factory=dict)
    entry: Checkpoint | None = None
    blueprint: Backbone | None = None


def resolve(
    name: str,
    pretrained: bool = False,
    checkpoint: str | PathLike[str] | StateDict | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    use_ema: bool = True,
    dense: bool = False,
    levels: Sequence[int] | None = None,
    **settings: Any,
) -> Resolved:
    """Configuration and weights of a model; arguments as for `zoo.create_model`.

    Args:
        dense: accept a checkpoint without a classifier.
        levels: levels of a pyramid; a checkpoint may lack the stages after the last of them. None for all.
        settings: arguments of the `Backbone`.

    Raises:
        ConfigError: for an unknown name or key, or parts that do not fit together.
        CheckpointError: if weights cannot be obtained or read, or do not fit.
    """
    overrides, described, entry, found, place = dict(overrides or {}), {}, None, None, name
    settings = {key: value for key, value in settings.items() if value is not None}
    if checkpoint is not None:
        if pretrained or stored.is_stored(name):
            given = "pretrained=True" if pretrained else name
            raise CheckpointError(f"{given} and checkpoint= both name weights: pass one of them")
        found = find(checkpoint, use_ema)
    elif stored.is_stored(name):
        kept = stored.read(name)
        name, pretrained, found = kept.variant, False, Found(kept.tensors)
        overrides, described = {**kept.overrides, **overrides}, kept.described
    variant, tag = split_tag(name)
    config = load_config(variant, overrides)
    if pretrained:
        if (entry := default_checkpoint(variant, tag)) is None:
            raise CheckpointError(f"{variant}: there is no published checkpoint of it; pass checkpoint=FILE")
        found = Found(published_tensors(entry))
    if found is None:
        if overrides or file_of(variant) is None:
            on_meta(config, **settings)
        return Resolved(config, settings)
    spare = _spare(config, levels)
    fitted = _fitted(config, found, may_lack(spare, dense), settings, copied=isinstance(checkpoint, Mapping))
    check_counts(described, fitted.classes, fitted.channels, place)
    return replace(fitted, described=described, entry=entry)


def _spare(config: ModelConfig, levels: Sequence[int] | None) -> tuple[str, ...]:
    """Name prefixes of the stages that a pyramid does not need."""
    numbers = [i for i, stage in enumerate(config.stages) if stage.level]
    chosen = () if levels is None or isinstance(levels, int) else levels
    inside = [numbers[level] for level in chosen if -len(numbers) <= level < len(numbers)]
    return tuple(f"stages.{i}." for i in range(max(inside) + 1, len(config.stages))) if inside else ()


def _fitted(
    config: ModelConfig, found: Found, optional: Optional, settings: Mapping[str, Any], copied: bool
) -> Resolved:
    """Published weights under our names, with a blueprint of their model; `copied` if the caller keeps them."""
    blueprint = on_meta(config, **settings)
    targets = shapes_of(config, blueprint)
    tensors, _ = convert_and_check(found.tensors, config.checkpoints, targets, adaptable(config), optional)
    if any(value.is_meta for value in tensors.values()) and not torch.empty(0).is_meta:
        raise CheckpointError("the checkpoint is on the meta device, which holds no numbers: load one with values")
    nonfinite(tensors)
    classifier = tensors.get(f"{CLASSIFIER}.weight")
    first = next((tensors[f"{name}.weight"] for name in first_convolutions(config)), None)
    return Resolved(
        config,
        settings,
        {name: value.clone() for name, value in tensors.items()} if copied else tensors,
        classes=None if classifier is None else len(classifier),
        channels=None if first is None else first.shape[1],
        blueprint=blueprint,
    )


def assemble(resolved: Resolved) -> Backbone:
    """The model itself: weights are taken as they are, but that another number of channels is adapted, and that a
    classifier for other classes and norms that the weights lack are new.

    Call it once per `Resolved`, because its blueprint and tensors become the model.
    """
    settings, blueprint, tensors = dict(resolved.settings), resolved.blueprint, resolved.tensors
    if blueprint is None or tensors is None:
        return Backbone(resolved.config, **settings)
    classes = settings.setdefault("num_classes", resolved.classes or 0)
    channels = settings.setdefault("in_chans", resolved.channels or 3)
    if channels != blueprint.in_chans:
        blueprint = on_meta(resolved.config, **settings)
    elif classes != blueprint.num_classes:
        with torch.device("meta"):
            blueprint.reset_classifier(classes)
    _take(blueprint, with_channels(tensors, resolved.config, channels))
    return blueprint


def _take(blueprint: Backbone, tensors: StateDict) -> None:
    """Make tensors the parameters of a model on the meta device, and initialise the missing ones.

    Stages that a pyramid does not need may stay on the meta device.
    """
    own, device = blueprint.state_dict(), torch.empty(0).device  # `get_default_device` of 2.7 fails without one
    taken = {
        name: _laid_out(tensors[name].to(device, value.dtype), value)
        for name, value in own.items()
        if name in tensors and tensors[name].shape == value.shape
    }
    blueprint.load_state_dict(taken, strict=False, assign=True)
    for name, module in blueprint.named_modules():
        values = [*module.named_parameters(name, recurse=False), *module.named_buffers(name, recurse=False)]
        if hasattr(module, "reset_parameters") and values and not any(key in taken for key, _ in values):
            module.to_empty(device=device, recurse=False)
            module.reset_parameters()
    initialise(blueprint, blueprint.config.init, taken)


def _laid_out(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor with the strides of another, in its own memory and aligned as PyTorch would allocate it.

    Slices of a published tensor share memory, and tensors in a file may start at any byte, which selects other kernels.
    """
    alone = value.is_meta or (value.untyped_storage().nbytes() == value.nbytes and value.data_ptr() % 64 == 0)
    if alone and value.stride() == like.stride():
        return value
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=value.device).copy_(value)
