"""Facts about a variant that do not require building it: timm's description, names and shapes of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from zoo.config.catalog import file_of, is_file, load_config
from zoo.config.model import ModelConfig
from zoo.errors import ConfigError, Where
from zoo.kernels.sizes import ceil_div
from zoo.models.limits import on_meta
from zoo.nn.backbone import Backbone
from zoo.nn.embeds import input_convolutions
from zoo.nn.layers.norm import build_norm
from zoo.weights.manifest import Checkpoint, checkpoints_of

PREFIX = "zoo_"
"""Prefix of the variants' names in timm."""
BACKBONE_ARGUMENTS = ("num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate", "level_norm")
CLASSIFIER = "head.fc"
LEVEL_NORMS = "level_norms."
DENSE_LACKS = ("head.", "norm.")
"""Parts that detectors and pyramids leave out."""

PICKLED = (".pth", ".pt", ".bin", ".tar", ".ckpt")
"""Extensions of checkpoint files that do not name their model."""

StateDict = Mapping[str, torch.Tensor]


def split_tag(name: str) -> tuple[str, str | None]:
    """Split "davit_tiny.msft_in1k" into ("davit_tiny", "msft_in1k"); file names have no tag."""
    variant, _, tag = name.partition(".") if isinstance(name, str) and not is_file(name) else (name, "", "")
    if isinstance(name, str) and name.endswith(PICKLED):
        raise ConfigError(
            f"{name!r} is a checkpoint that does not say which model it is of: name the model, and pass "
            f"checkpoint={name!r}"
        )
    if tag and file_of(variant) and tag not in (entry.tag for entry in checkpoints_of(variant)):
        raise Where(name).unknown(tag, (entry.tag for entry in checkpoints_of(variant)), "checkpoint")
    return variant, tag or None


def first_convolutions(config: ModelConfig) -> tuple[str, ...]:
    """Names of the convolutions applied to the image."""
    return tuple(f"stages.0.embed.{name}" for name in input_convolutions(config.stages[0].embed))


def first_convolution(config: ModelConfig) -> str | tuple[str, ...] | None:
    """The same, in the form that timm uses."""
    first = first_convolutions(config)
    return first[0] if len(first) == 1 else first or None


def adaptable(config: ModelConfig) -> dict[str, int | None]:
    """Names of the parameters that depend on the number of channels or classes, and their axis of these."""
    classifier: dict[str, int | None] = {f"{CLASSIFIER}.weight": 0, f"{CLASSIFIER}.bias": 0}
    return classifier | {f"{name}.weight": 1 for name in first_convolutions(config)}


def with_channels(tensors: StateDict, config: ModelConfig, channels: int) -> dict[str, torch.Tensor]:
    """The tensors of a variant for `channels` image channels: repeated, or summed for one, at the same scale."""
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


def shapes_of(config: ModelConfig, backbone: Backbone) -> dict[str, torch.Tensor]:
    """Names and shapes of a whole model, and of the norms that detectors put on each level.

    A variant in which every stage ends in a norm has no further norms.
    """
    own = backbone.state_dict()
    if config.stage_norm is not None:
        return own
    pairs = zip(config.level_norm, config.stages, strict=True)
    with torch.device("meta"):
        norms = nn.ModuleList(build_norm(norm if stage.level else None, stage.dim) for norm, stage in pairs)
    return own | {LEVEL_NORMS + name: value for name, value in norms.state_dict().items()}


@cache
def published_shapes(variant: str, num_classes: int) -> dict[str, torch.Tensor]:
    """Names and shapes of a shipped variant's own checkpoints."""
    return on_meta(load_config(variant), num_classes=num_classes).state_dict()


def pool_size(backbone: Backbone) -> tuple[int, ...]:
    """(height, width) of the map that the head pools, for images of the variant's own size."""
    reduction = backbone.feature_info[-1]["reduction"]
    return tuple(ceil_div(side, reduction) for side in backbone.config.img_size)


def default_cfg(config: ModelConfig, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """timm's description of a model and its weights."""
    cfg = {
        "input_size": (3, *config.img_size),
        "first_conv": first_convolution(config),
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
