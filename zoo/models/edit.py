"""Models derived from models: batch norms folded for inference, position tables for another training size."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import nn

from zoo.config.catalog import load_config
from zoo.errors import CheckpointError, ConfigError
from zoo.models.load import backbone_of
from zoo.models.variants import pool_size
from zoo.nn.backbone import Backbone
from zoo.nn.parts import Foldable
from zoo.weights.load import resized_table

_logger = logging.getLogger(__name__)


def freeze(model: nn.Module, stages: int) -> None:
    """Freeze the first `stages` stages of a model, including the stem; 0 unfreezes everything.

    Their batch norms and stochastic depth stay in evaluation mode, whatever `train()` is called with.

    Raises:
        ConfigError: if this is not a model of the zoo, or it has fewer stages.
    """
    backbone_of(model).freeze(stages)


def fuse(model: nn.Module) -> nn.Module:
    """A copy for inference with batch norms folded into the adjacent convolutions and linear layers.

    The outputs equal those of the model in evaluation mode, up to rounding. A norm before padding, a pool or another
    norm is kept. The state dict changes, so save the model before fusing it.

    Raises:
        ConfigError: if this is not a model of the zoo.
    """
    backbone_of(model)
    fused = copy.deepcopy(model).eval()
    for module in list(fused.modules()):
        if isinstance(module, Foldable):
            module.fold()
    return fused


def resize_positions(model: nn.Module, img_size: int | tuple[int, int] | None = None, **overrides: Any) -> nn.Module:
    """A copy of a model for another training size, with position tables interpolated where windows grow with it.

    Only rules that follow the training size change, such as MaxViT's windows of img_size / 32; every model takes images
    of any size as it is. The resized tables are logged as a warning. Everything else is as it was: wrappers, frozen
    stages, rates, device and dtype, what was done to the model since it was made.

    Args:
        model: of `zoo.create_model`.
        img_size: (height, width), or one side of a square.
        overrides: configuration keys, as for `zoo.create_model`: `**{"block.attn.size": 9}`.

    Raises:
        ConfigError: if this is not a model of the zoo, or for an unknown key.
        CheckpointError: if a key changes more than position tables.
    """
    old = backbone_of(model)
    changes = overrides if img_size is None else {"img_size": img_size, **overrides}
    if not changes:
        raise ConfigError("resize_positions: nothing to change, expected img_size or a configuration key")
    config = load_config(old.config.source, {**old.config.overrides, **changes})
    copied = copy.deepcopy(model)
    backbone = backbone_of(copied)
    with torch.device("meta"):
        before, after = Backbone(old.config), Backbone(config)
    tables = _tables_to_resize(before, after)
    _take_settings(backbone, before, after)
    if resized := [name for name in tables if _resize(backbone, name, tables[name])]:
        _logger.warning("position tables were resized to other windows: %d, the first %s", len(resized), resized[0])
    if img_size is not None:
        size = {"input_size": (old.in_chans, *config.img_size), "pool_size": pool_size(after)}
        for described in {copied, backbone}:
            getattr(described, "pretrained_cfg", {}).update(size)
    return copied


def _tables_to_resize(before: Backbone, after: Backbone) -> dict[str, torch.Size]:
    """Names and new shapes of the position tables that differ between two models.

    Raises:
        CheckpointError: if they differ in anything else.
    """
    old, new = before.state_dict(), after.state_dict()
    changed = [name for name in old | new if name not in old or name not in new or old[name].shape != new[name].shape]
    if wrong := [name for name in changed if not name.endswith("pos_bias.table")]:
        raise CheckpointError(
            f"resize_positions changes position tables alone, and not {len(wrong)} others: {wrong[0]}"
        )
    return {name: new[name].shape for name in changed}


def _take_settings(backbone: Backbone, before: Backbone, after: Backbone) -> None:
    """Give every module of `backbone` the settings, such as the side of a window, that differ in `after`."""
    others = dict(after.named_modules()), dict(before.named_modules())
    for name, module in backbone.named_modules():
        new, old = (vars(modules[name]) if name in modules else {} for modules in others)
        for key in old.keys() & new.keys():
            if not key.startswith("_") and old[key] != new[key]:
                setattr(module, key, new[key])


def _resize(backbone: Backbone, name: str, shape: torch.Size) -> bool:
    """Interpolate a table as for a checkpoint. Returns whether it exists: the stage may have been removed."""
    if name not in dict(backbone.named_parameters()):
        return False
    table = backbone.get_parameter(name)
    with torch.no_grad():
        value = resized_table(table, shape)
    owner, _, leaf = name.rpartition(".")
    setattr(backbone.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=table.requires_grad))
    return True
