"""Parameter groups for an optimiser, with the weight decay and learning rates of a family's published recipe."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from zoo.models.load import backbone_of


def parameter_groups(
    model: nn.Module, weight_decay: float = 0.05, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Groups for `torch.optim` or `timm.optim.create_optimizer_v2(param_group_fn=...)`, with timm's keys.

    Vectors, biases and the names in `no_weight_decay` are not decayed. `lr_scale`, by which timm's schedulers multiply
    the learning rate, contains the family's own factors (0.01 for LITv2's offset convolutions) and those of
    `layer_decay`.

    Args:
        model: from `zoo.create_model`, possibly wrapped for compilation or several processes.
        weight_decay: for all other parameters.
        layer_decay: factor of the learning rate from one block to the one before; None for none.

    Raises:
        ConfigError: if this is not a model of the zoo.
    """
    model = backbone_of(model)
    excluded = model.no_weight_decay()
    if layer_decay is None:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=excluded)
    else:
        groups = param_groups_layer_decay(model, weight_decay, excluded, layer_decay=layer_decay)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [part for group in groups for part in _split(group, names, model.config.lr_scale)]


def _split(group: dict[str, Any], names: dict[int, str], scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """The group, split so that parameters with their own learning rate are in groups of their own."""
    parts: dict[float, list[nn.Parameter]] = {}
    for parameter in group["params"]:
        name = names[id(parameter)]
        scale = next((value for pattern, value in scales.items() if fnmatch.fnmatch(name, pattern)), 1.0)
        parts.setdefault(scale, []).append(parameter)
    inherited = group.get("lr_scale", 1.0)
    rest = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    return [{**rest, "params": params, "lr_scale": scale * inherited} for scale, params in parts.items()]
