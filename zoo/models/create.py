"""The public entry point: a model by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from torch import nn

from zoo.errors import ConfigError
from zoo.models.build import build
from zoo.models.resolve import resolve
from zoo.models.variants import StateDict


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    checkpoint: str | PathLike[str] | StateDict | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    level_norm: bool = False,
    output_stride: int | None = None,
    drop_path_rate: float | None = None,
    drop_rate: float = 0.0,
    exportable: bool = False,
    use_ema: bool = True,
    overrides: Mapping[str, Any] | None = None,
    **keys: Any,
) -> nn.Module:
    """A backbone with a classifier, or a feature pyramid.

    Args:
        name: a shipped variant ("davit_tiny", or "davit_tiny.msft_in1k" to choose among its published weights), a
            configuration file ("my.yaml"), a variant in one ("my.yaml:variant"), a place written by
            `zoo weights publish`, with its weights ("hf-hub:owner/name", "local-dir:folder"), or a checkpoint of
            `zoo train` ("best.safetensors").
        pretrained: load the variant's published weights, downloaded and converted the first time.
        checkpoint: a file or state dict to load instead, in any published format of the variant, also inside the
            checkpoint of a training script or detector. If `num_classes` differs, the classifier is re-initialised; if
            `in_chans` differs, the first convolution is adapted. A checkpoint without a classifier, such as a
            detector's or a pyramid's, needs `features_only` or `num_classes`.
        num_classes: width of the classifier; 0 for pooled features; None for the width in the weights, or 1000.
        in_chans: channels of the image; None for the number in the weights, or 3.
        img_size: (height, width) for rules that follow the training size, such as MaxViT's window of img_size / 32.
            Every model takes images of any size, whatever this value is.
        features_only: return a model that maps images to a list of (B, C, H, W) maps at strides 4, 8, 16 and 32.
        out_indices: the stages of that list, 0 to 3, or negative from the end.
        level_norm: give each map a norm of its own, as the published detectors of the family do.
        output_stride: the coarsest stride of a map, 8 or 16 instead of 32: later stages are dilated instead. NAT and
            DiNAT support this.
        drop_path_rate: stochastic depth of the last block; None for the rate that the variant was published with, 0.1
            to 0.8, which suits training from scratch and is often too much for fine-tuning. timm's default is 0.
        drop_rate: dropout before the classifier.
        exportable: always run only PyTorch's own operators, as in `zoo export`, for `torch.jit.trace` and other
            converters that record what a model executes.
        use_ema: load the moving average if a checkpoint has both it and the trained weights.
        overrides: configuration keys, dotted for one value in a mapping: `{"block.mlp.ratio": 3}`.
        keys: configuration keys without a dot, such as the options of a family.

    Returns:
        A `zoo.nn.backbone.Backbone`, or timm's feature wrapper around one.

    Raises:
        ConfigError: for an unknown name or key, or parts that do not fit together.
        CheckpointError: if weights cannot be obtained or read, or do not fit.
    """
    if out_indices is not None and not features_only:
        raise ConfigError("out_indices chooses among feature maps: pass features_only=True as well")
    if "checkpoint_path" in keys:
        raise ConfigError("checkpoint_path is timm's argument: here it is checkpoint=, a file or a state dict")
    wrap = {"feature_cls": keys.pop("feature_cls")} if "feature_cls" in keys else {}
    changes = {"img_size": img_size, "output_stride": output_stride}
    resolved = resolve(
        name,
        pretrained,
        checkpoint,
        {key: value for key, value in changes.items() if value is not None} | dict(overrides or {}) | keys,
        use_ema=use_ema,
        dense=features_only or num_classes is not None,
        levels=out_indices,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        drop_rate=drop_rate,
        level_norm=level_norm,
    )
    wrap |= {"features_only": True} if features_only else {}
    wrap |= {} if out_indices is None else {"out_indices": out_indices}
    return build(resolved, exportable=exportable, **wrap)
