"""Builds models from resolved names with timm's builder, so that timm's tools find what they need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from timm.layers import Format, is_exportable
from timm.models import build_model_with_cfg
from timm.models._features import FeatureGetterNet
from torch import nn

from zoo.config.catalog import file_of
from zoo.errors import ConfigError
from zoo.models.load import may_lack
from zoo.models.resolve import Resolved, assemble
from zoo.models.variants import (
    LEVEL_NORMS,
    PREFIX,
    adaptable,
    default_cfg,
    first_convolution,
    pool_size,
    with_channels,
)
from zoo.nn.backbone import Backbone
from zoo.weights.files import as_state_dict
from zoo.weights.load import convert_and_check
from zoo.weights.manifest import default_checkpoint


class FeaturePyramid(FeatureGetterNet):
    """timm's feature wrapper around a `Backbone`, which also takes the mask of a padded batch.

    `feature_info` gives channels, reductions and modules of the maps.
    """

    model: Backbone
    pretrained_cfg: dict[str, Any]

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Images (B, in_chans, H, W) to one map (B, C, H / stride, W / stride) a level, fine to coarse.

        Args:
            mask: (B, H, W), true where a pixel belongs to the image, as for `Backbone.forward_intermediates`.
        """
        fmt: Literal["NCHW", "NHWC"] = "NHWC" if self.output_fmt == Format.NHWC else "NCHW"
        maps = self.model.forward_intermediates(
            x, self.out_indices, self.norm, output_fmt=fmt, intermediates_only=True, mask=mask
        )
        return cast("list[torch.Tensor]", maps)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.model.set_grad_checkpointing(enable)


def build(
    resolved: Resolved, pretrained: bool = False, pretrained_cfg: Any = None, exportable: bool = False, **wrap: Any
) -> nn.Module:
    """A model with its weights.

    Args:
        pretrained: let timm load weights from the source in its description.
        pretrained_cfg: timm's description of the weights, or the tag of one; None for ours.
        exportable: always run only PyTorch's own operators.
        wrap: other arguments of timm's builder: `features_only`, `out_indices`, ...

    Raises:
        ConfigError: for parts that do not fit together, or a feature wrapper that does not work.
    """
    if (wrapper := wrap.get("feature_cls")) in ("hook", "list", "dict", "fx"):
        raise ConfigError(
            f"feature_cls is {wrapper!r}, but a zoo model is more than its modules in turn: "
            "leave it out, features_only=True gives the same maps"
        )
    config, backbone = resolved.config, assemble(resolved)
    levels = {"out_indices": tuple(range(len(backbone.levels))), "feature_cls": FeaturePyramid}
    model: Backbone | FeaturePyramid = build_model_with_cfg(
        lambda **settings: backbone,
        PREFIX + config.name,
        pretrained,
        pretrained_cfg=pretrained_cfg or _description(resolved),
        pretrained_filter_fn=_ours,
        feature_cfg=levels | ({"norm": True} if resolved.settings.get("level_norm") else {}),
        in_chans=backbone.in_chans,
        **wrap,
    )
    for about in (model.pretrained_cfg, backbone.pretrained_cfg):
        about.pop("state_dict", None)
        about.update(first_conv=first_convolution(config), pool_size=pool_size(backbone))
    for stage in backbone.stages:
        stage.exportable = exportable or is_exportable()
    return model


def _description(resolved: Resolved) -> dict[str, Any]:
    """What timm needs to know about a model and its weights, or those that `pretrained=True` would load."""
    config, entry = resolved.config, resolved.entry
    if entry is None and file_of(config.source):
        entry = default_checkpoint(config.source)
    about = default_cfg(config, entry) | {"architecture": PREFIX + config.name, "tag": entry and entry.tag}
    about |= {"input_size": (resolved.channels or 3, *config.img_size), **resolved.described}
    if resolved.classes is not None:
        about["num_classes"] = resolved.classes
    if resolved.settings.get("num_classes") not in (None, about.get("num_classes", 1000)):
        about |= {"label_names": None, "label_descriptions": None}
    return about


def _ours(state: Mapping[str, torch.Tensor], model: Backbone) -> dict[str, torch.Tensor]:
    """What timm loads, in any published form, under our names, with the model's own norms of levels and channels."""
    own = model.state_dict()
    levels = {name: value for name, value in own.items() if name.startswith(LEVEL_NORMS)}
    tensors = convert_and_check(
        as_state_dict(state), model.config.checkpoints, own, adaptable(model.config), may_lack(dense=False)
    )[0]
    return levels | with_channels(tensors, model.config, model.in_chans)
