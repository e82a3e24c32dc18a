"""Models made from models: batch norms folded away for inference, position tables for another training size."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from zoo.backbone import Backbone
from zoo.catalog import load_config
from zoo.errors import ConfigError
from zoo.models import backbone_of, load_checkpoint


def freeze(model: nn.Module, stages: int) -> None:
    """Do not train the first `stages` stages of a model, the stem with the first; 0 trains all of it again.

    Their batch norms and stochastic depth stay in evaluation mode, whatever `train()` is called with.

    Raises:
        ConfigError: if this is not a model of the zoo, or it has fewer stages.
    """
    backbone_of(model).freeze(stages)


def fuse(model: nn.Module) -> nn.Module:
    """A copy for inference whose batch norms are part of the convolutions and linear layers beside them.

    The outputs are those of the model in evaluation mode, up to rounding. A norm that stands before padding, a pool or
    another norm stays. The state dict is another one: save the model before it is fused.

    Raises:
        ConfigError: if this is not a model of the zoo.
    """
    backbone_of(model)
    fused = copy.deepcopy(model).eval()
    for module in list(fused.modules()):
        if hasattr(module, "fold"):
            module.fold()
    return fused


def resize_positions(model: nn.Module, img_size: int | tuple[int, int] | None = None, **overrides: Any) -> Backbone:
    """The same model for another training size, its position tables interpolated where windows grow with it.

    Only rules that follow the training size change, such as MaxViT's windows of img_size / 32; every model takes images
    of any size as it is. Which tables were resized is logged as a warning.

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
    new = Backbone(config, old.num_classes, old.in_chans, old.head.pool, old.head.drop.p).train(old.training)
    new.to(next(old.parameters()))
    load_checkpoint(new, old.state_dict())
    return new
