"""Facts about the variants: names, size, cost, published figures, licences and sources."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from zoo.config.catalog import family_of, load_config, shipped
from zoo.config.schema import Size, check
from zoo.errors import Where
from zoo.models.variants import split_tag
from zoo.nn.backbone import Backbone
from zoo.weights.manifest import Checkpoint, checkpoints_of, sources_of


def list_models(pattern: str | None = None, *, family: str | None = None, pretrained: bool = False) -> list[str]:
    """Names of the shipped variants, sorted.

    Args:
        pattern: shell-style, as in "davit_*".
        family: "davit", "maxvit", ...
        pretrained: only those with published weights that can be downloaded.
    """
    names = [name for name in shipped() if family in (None, family_of(name))]
    if pretrained:
        names = [name for name in names if any(entry.by_machine for entry in checkpoints_of(name))]
    return names if pattern is None else fnmatch.filter(names, pattern)


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a variant.

    Attributes:
        params: parameters, with a classifier of 1000 classes.
        gmacs: 1e9 multiply-adds of one forward pass at `img_size`, counted.
        img_size: (height, width) in pixels.
        num_chs, reductions: channels and strides of the feature maps.
        drop_path_rate: stochastic depth of the last block in training, unless `create_model` is given another.
        top1: published ImageNet-1k accuracy in percent, of the default checkpoint.
        licence_code, licence_weights: of the published code and of the default checkpoint.
        sources: where code, paper and weights are.
        input_transform: mean, std, interpolation, crop_pct and crop_mode of the default checkpoint.
        checkpoints: every published checkpoint, the default first.
    """

    name: str
    family: str
    params: int
    gmacs: float
    img_size: tuple[int, int]
    num_chs: tuple[int, ...]
    reductions: tuple[int, ...]
    drop_path_rate: float
    top1: float | None
    licence_code: str | None
    licence_weights: str | None
    sources: tuple[str, ...]
    input_transform: dict[str, Any]
    checkpoints: tuple[Checkpoint, ...]


def model_info(name: str, img_size: int | tuple[int, int] | None = None) -> ModelInfo:
    """Size, cost, published figures, licences and sources of a variant or configuration file.

    Args:
        name: as for `create_model`.
        img_size: image size for counting multiply-adds; None for the variant's own.

    Raises:
        ConfigError: for an unknown name.
    """
    variant, tag = split_tag(name)
    config = load_config(variant)
    size = config.img_size if img_size is None else check(img_size, Size, Where("img_size"))
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = Backbone(config).eval()
        model(torch.empty(1, 3, *size))
    entries = sorted(checkpoints_of(variant), key=lambda entry: (entry.tag != tag, not entry.by_machine))
    first = entries[0] if entries else None
    return ModelInfo(
        name=config.name,
        family=config.family,
        params=sum(p.numel() for p in model.parameters()),
        gmacs=counter.get_total_flops() / 2e9,
        img_size=size,
        num_chs=tuple(level["num_chs"] for level in model.feature_info),
        reductions=tuple(level["reduction"] for level in model.feature_info),
        drop_path_rate=config.drop_path_rate,
        top1=(first.top1 or first.top1_timm) if first else None,
        licence_code=first.licence_code if first else None,
        licence_weights=first.licence_weights if first else None,
        sources=sources_of(entries),
        input_transform=first.input_transform if first else {},
        checkpoints=tuple(entries),
    )
