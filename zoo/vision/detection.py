"""Pyramids for torchvision's detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Annotated, Any, cast

import torch
from timm.models._features import FeatureGetterNet
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from zoo.config.schema import Range, check
from zoo.errors import ConfigError, Where
from zoo.models.create import create_model
from zoo.models.load import backbone_of


class TorchvisionBackbone(nn.Module):
    """A feature pyramid network on a backbone, as torchvision's detectors expect it.

    Args:
        body: maps images (B, C, H, W) to a list of maps, fine to coarse, described by timm's `feature_info`.
        out_channels: width of the pyramid.
        extra_blocks: computes the levels beyond those of `body`.
    """

    def __init__(self, body: FeatureGetterNet, out_channels: int, extra_blocks: ExtraFPNBlock) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), out_channels, extra_blocks)
        self.out_channels = out_channels

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (B, C, H, W) to maps (B, out_channels, h, w), fine to coarse: "0", "1", ... and the extra levels."""
        return self.fpn({str(i): level for i, level in enumerate(self.body(x))})


def torchvision_backbone(
    name: str,
    pretrained: bool = False,
    *,
    checkpoint: str | PathLike[str] | Mapping[str, torch.Tensor] | None = None,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    out_channels: int = 256,
    trainable_stages: int | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
    level_norm: bool = True,
    **settings: Any,
) -> TorchvisionBackbone:
    """The backbone of a torchvision detector: `FasterRCNN(torchvision_backbone("davit_tiny"), num_classes=91)`.

    Args:
        name, pretrained, checkpoint, level_norm, settings: as for `zoo.create_model`.
        out_indices: the stages that form the pyramid, fine to coarse.
        out_channels: width of the pyramid.
        trainable_stages: how many of the last stages train, see `zoo.freeze`; None for all and the stem.
        extra_blocks: computes the coarser levels; by default one, "pool", as in Faster and Mask R-CNN. RetinaNet uses
            `out_indices=(1, 2, 3), extra_blocks=LastLevelP6P7(256, 256)`.

    Raises:
        ConfigError: for an unknown name or key, or stages that do not get coarser.
        CheckpointError: if weights cannot be obtained or read, or do not fit.
    """
    settings |= {"checkpoint": checkpoint, "out_indices": out_indices, "level_norm": level_norm}
    body = cast(FeatureGetterNet, create_model(name, pretrained, features_only=True, **settings))
    strides = body.feature_info.reduction()
    if strides != sorted(set(strides)):
        raise ConfigError(f"{name}: stages {tuple(out_indices)} have strides {strides}, expected each above the last")
    if trainable_stages is not None:
        stages = len(backbone_of(body).stages)
        check(trainable_stages, Annotated[int, Range(0, stages)], Where("trainable_stages"))
        backbone_of(body).freeze(stages - trainable_stages)
    return TorchvisionBackbone(body, out_channels, extra_blocks or LastLevelMaxPool())
