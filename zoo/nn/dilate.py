"""A finer last map: strides replaced by dilation, for dense prediction (DeepLab, https://arxiv.org/abs/1606.00915)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from zoo.config.model import BranchConfig, ModelConfig, Part, StageConfig
from zoo.errors import ConfigError
from zoo.nn.registry import BRANCHES, EMBEDS, Registry


def dilate(config: ModelConfig, strides: Sequence[int], output_stride: int) -> ModelConfig:
    """The variant with no map coarser than `output_stride` pixels and the same weights.

    Where a stage would make its map coarser, it keeps its size, and from there on convolutions and neighbourhoods are
    dilated by the same factor. Every position of the original map then occurs in the new map, with the same features if
    the sides of the map are divisible. A stage must consist of centred convolutions, neighborhood attention, and parts
    that see one position, as in NAT and DiNAT. Windows, regions and pooled maps have no such form.

    Args:
        strides: how many times smaller than its input each stage makes its map.

    Raises:
        ConfigError: if no map has the stride `output_stride`, or a part has no dilated form.
    """
    if config.branching:
        raise _cannot(config, "a graph of stages")
    stages, reached, dilation = [], 1, 1
    for stage, stride in zip(config.stages, strides, strict=True):
        kept = reached * stride <= output_stride
        if reached == 1 and not kept:
            raise ConfigError(f"output_stride is {output_stride}, but the stem of {config.name} has stride {stride}")
        reached *= stride if kept else 1
        if not kept or dilation > 1:
            finer = dilation if kept else dilation * stride
            stage, dilation = _dilated_stage(config, stage, kept, dilation, finer), finer
        stages.append(stage)
    if reached != output_stride and dilation > 1:
        raise ConfigError(f"output_stride is {output_stride}, expected a stride of {config.name}'s maps, or more")
    return replace(config, stages=tuple(stages))


def _dilated_stage(config: ModelConfig, stage: StageConfig, kept: bool, before: int, after: int) -> StageConfig:
    """The stage on a map that is `before` times finer than the original's, and `after` times from its embed on."""

    def branch_of(branch: BranchConfig) -> BranchConfig:
        return replace(branch, part=_dilated_part(config, BRANCHES, branch.part, after))

    embed = stage.embed
    if embed is not None:
        embed = _dilated_part(config, EMBEDS, embed, before, kept)
    elif not kept:
        raise _cannot(config, stage.blocks[0][0].part.type)
    return replace(stage, embed=embed, blocks=tuple(tuple(map(branch_of, block)) for block in stage.blocks))


def _dilated_part(config: ModelConfig, registry: Registry, part: Part, *how: Any) -> Part:
    dilated = getattr(registry.find(part.type, part.where / "type"), "dilated", None)
    params = None if dilated is None else dilated(part.params, *how)
    if params is None:
        raise _cannot(config, part.type)
    return replace(part, params=params)


def _cannot(config: ModelConfig, what: str) -> ConfigError:
    return ConfigError(
        f"{config.name} cannot take output_stride: {what} has no dilated form; NAT and DiNAT can, or use the maps as "
        "they are, which a feature pyramid network brings together"
    )
