"""A finer last map: strides replaced by dilation, for dense prediction (DeepLab, https://arxiv.org/abs/1606.00915)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from zoo.config.model import BranchConfig, ModelConfig, Part, StageConfig
from zoo.errors import ConfigError


def dilate(config: ModelConfig, output_stride: int) -> ModelConfig:
    """The variant with no map coarser than `output_stride` pixels, under the same weights.

    Where a stage's convolution would step further, it stops stepping, and from there on convolutions and neighbourhoods
    are dilated by as much. Every position of the original map is then found among the new ones, with the same features
    where the sides of the map divide. That asks of a stage that it consists of centred convolutions, of neighborhood
    attention, and of parts that see one position: NAT and DiNAT. Windows, regions and pooled maps have no such form.

    Raises:
        ConfigError: if `output_stride` is no map's, or the family cannot.
    """
    if config.branching:
        raise _cannot(config, "a graph of stages")
    stages, reached, dilation = [], 1, 1
    for stage in config.stages:
        stride = _stride(stage)
        kept = reached * stride <= output_stride
        if reached == 1 and not kept:
            raise ConfigError(f"output_stride is {output_stride}, but the stem of {config.name} has stride {stride}")
        reached *= stride if kept else 1
        if not kept or dilation > 1:
            stage, dilation = _dilated(stage, config, kept, dilation)
        stages.append(stage)
    if reached != output_stride and dilation > 1:
        raise ConfigError(f"output_stride is {output_stride}, expected a stride of {config.name}'s maps, or more")
    return replace(config, stages=tuple(stages))


def _stride(stage: StageConfig) -> int:
    """How many times smaller the stage makes its map; embeds that do not say halve it."""
    embed: Mapping[str, Any] = stage.embed.params if stage.embed else {"stride": 1}
    layers: list[Mapping[str, Any]] = embed.get("layers", [{"stride": embed.get("stride", 2)}])
    stride = math.prod(layer.get("stride", 1) for layer in layers)
    return stride * math.prod(branch.part.params.get("stride", 1) for block in stage.blocks for branch in block)


def _dilated(stage: StageConfig, config: ModelConfig, kept: bool, dilation: int) -> tuple[StageConfig, int]:
    """The stage on a map that is `dilation` times finer, and how much finer its own is than the original's."""
    if stage.embed is None or "layers" not in stage.embed.params:
        raise _cannot(config, stage.embed.type if stage.embed else stage.blocks[0][0].part.type)
    (layer,) = stage.embed.params["layers"]
    if layer["kernel"] % 2 == 0 or "padding" in layer:
        raise _cannot(config, f"a {layer['kernel']}x{layer['kernel']} convolution")
    finer = dilation if kept else dilation * layer["stride"]
    changed = {**layer, "dilation": dilation} | ({} if kept else {"stride": 1})
    embed = _with(stage.embed, {"layers": [changed]})
    blocks = tuple(tuple(_dilated_branch(branch, config, finer) for branch in block) for block in stage.blocks)
    return replace(stage, embed=embed, blocks=blocks), finer


def _dilated_branch(branch: BranchConfig, config: ModelConfig, factor: int) -> BranchConfig:
    part = branch.part
    if part.type == "mlp" and not part.params.get("dwconv"):
        return branch
    if part.type != "neighborhood":
        raise _cannot(config, part.type)
    old = part.params.get("dilation", 1)
    new = [n * factor for n in old] if isinstance(old, list | tuple) else old * factor
    return replace(branch, part=_with(part, {"dilation": new}))


def _with(part: Part, changes: Mapping[str, Any]) -> Part:
    return replace(part, params={**part.params, **changes})


def _cannot(config: ModelConfig, what: str) -> ConfigError:
    return ConfigError(
        f"{config.name} cannot take output_stride: {what} has no dilated form; NAT and DiNAT can, or use the maps as "
        "they are, which a feature pyramid network brings together"
    )
