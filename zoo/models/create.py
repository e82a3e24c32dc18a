"""The functions behind the public door: list, create, describe, convert, load."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zoo import timm_models
from zoo.config.catalog import family_of, is_file, load_config, shipped
from zoo.config.model import ModelConfig
from zoo.config.schema import Size, check
from zoo.errors import CheckpointError, ConfigError, Where
from zoo.models import stored
from zoo.nn.backbone import Backbone
from zoo.weights.convert import recognise
from zoo.weights.files import Found, as_state_dict, find
from zoo.weights.load import LoadReport, fit, nonfinite
from zoo.weights.manifest import Checkpoint, checkpoints_of, default_checkpoint, sources_of

StateDict = Mapping[str, torch.Tensor]
DENSE_LACKS = ("head.", "norm.")
"""What detectors and pyramids are built without."""


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
    **overrides: Any,
) -> nn.Module:
    """A backbone with a classifier, or a feature pyramid.

    Args:
        name: a shipped variant ("davit_tiny", or "davit_tiny.msft_in1k" to choose among its published weights),
            a configuration file ("my.yaml"), a variant in one ("my.yaml:variant"), a place that `zoo weights
            publish` wrote to, with its weights ("hf-hub:owner/name", "local-dir:folder"), or a checkpoint of
            `zoo train` ("best.safetensors").
        pretrained: load the variant's published weights, downloaded and converted the first time.
        checkpoint: a file or state dict to load instead, in any published form of the variant, also inside of a
            training script's or a detector's. With another number of classes the classifier is drawn anew; with other
            channels the first convolution is adapted. One without a classifier, as of a detector or a pyramid, is for
            `features_only` or for a `num_classes` that is given.
        num_classes: width of the classifier; 0 for pooled features; None for that of the weights, or 1000.
        in_chans: channels of the image; None for those of the weights, or 3.
        img_size: (height, width) for rules that follow the training size, such as MaxViT's window of
            img_size / 32. Every model takes images of any size whatever this is.
        features_only: return a model that maps images to a list of (B, C, H, W) maps at strides 4, 8, 16 and 32.
        out_indices: the stages of that list, 0 to 3, or negative from the end.
        level_norm: give each map a norm of its own, as the published detectors of the family do.
        output_stride: the coarsest stride of a map, 8 or 16 instead of 32: later stages are dilated instead, which NAT
            and DiNAT can.
        drop_path_rate: stochastic depth; None for the published rate of the variant.
        drop_rate: dropout before the classifier.
        exportable: always run PyTorch's own operators alone, as `zoo export` writes them, for `torch.jit.trace` and
            other converters that look at what a model runs.
        use_ema: of a checkpoint that holds trained weights and their moving average take the average.
        overrides: configuration keys, dotted for one value in a mapping: `**{"block.mlp.ratio": 3}`.

    Returns:
        A `zoo.nn.backbone.Backbone`, or timm's feature wrapper around one.

    Raises:
        ConfigError: for an unknown name or key, or parts that do not fit together.
        CheckpointError: if weights cannot be had, read or fitted.
    """
    described: dict[str, Any] = {}
    if img_size is not None:
        overrides = {"img_size": img_size, **overrides}
    if stored.is_stored(name):
        if checkpoint is not None:
            raise CheckpointError(f"{name} and checkpoint= both name weights: pass one of them")
        found = stored.read(name)
        name, pretrained, checkpoint = found.variant, False, found.tensors
        overrides, described = {**found.overrides, **overrides}, dict(found.described)
    if out_indices is not None and not features_only:
        raise ConfigError("out_indices chooses among feature maps: pass features_only=True as well")
    if pretrained and checkpoint is not None:
        raise CheckpointError("pretrained=True and checkpoint= both name weights: pass one of them")
    optional = {"out_indices": out_indices, "drop_path_rate": drop_path_rate}
    optional |= {"output_stride": output_stride, "exportable": exportable or None}
    settings = {key: value for key, value in optional.items() if value is not None}
    settings |= {"drop_rate": drop_rate, "level_norm": level_norm, **overrides}
    if features_only:
        settings["features_only"] = True
    variant, tag = split_tag(name)
    classes = 1000
    if checkpoint is not None:
        config, found = load_config(variant, overrides), find(checkpoint, use_ema)
        part = recognise(found.tensors, config.checkpoints, timm_models.meta_state(config, level_norm=True))
        settings["in_chans"] = timm_models.channels_of(part, config) if in_chans is None else in_chans
        if (features_only or num_classes is not None) and not part.has_classifier():
            model = timm_models.build(variant, num_classes=num_classes or 0, **settings)
            _load(model, found, adapt=True)
            return model
        described |= _as_pretrained(found.tensors, config)
        settings["pretrained_cfg_overlay"], classes = described, described["num_classes"]
        if num_classes not in (None, classes):
            described |= {"label_names": None, "label_descriptions": None}
    elif pretrained:
        if (entry := default_checkpoint(variant, tag)) is None:
            raise CheckpointError(f"{variant}: there is no published checkpoint of it; pass checkpoint=FILE")
        settings["pretrained_cfg"], classes = entry.tag, entry.num_classes
    settings = {"in_chans": 3 if in_chans is None else in_chans} | settings
    settings["num_classes"] = classes if num_classes is None else num_classes
    return timm_models.build(variant, pretrained or checkpoint is not None, **settings)


def split_tag(name: str) -> tuple[str, str | None]:
    """("davit_tiny", "msft_in1k") of "davit_tiny.msft_in1k"; names of files have no tag."""
    variant, _, tag = name.partition(".") if isinstance(name, str) and not is_file(name) else (name, "", "")
    if tag and variant in shipped() and tag not in (entry.tag for entry in checkpoints_of(variant)):
        raise Where(name).unknown(tag, (entry.tag for entry in checkpoints_of(variant)), "checkpoint")
    return variant, tag or None


def _as_pretrained(state: StateDict, config: ModelConfig) -> dict[str, Any]:
    """timm's description of a checkpoint at hand: its tensors under our names, its classes and channels."""
    tensors, _ = fit(state, config.checkpoints, timm_models.meta_state(config), timm_models.adaptable(config))
    nonfinite(tensors)
    classes = len(tensors[f"{timm_models.CLASSIFIER}.weight"])
    channels = next((tensors[f"{name}.weight"].shape[1] for name in timm_models.first_convolutions(config)), 3)
    return {"state_dict": tensors, "num_classes": classes, "input_size": (channels, *config.img_size)}


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


def convert_checkpoint(state_dict: StateDict, name: str) -> dict[str, torch.Tensor]:
    """A published state dict of the variant `name` under our names, ready for `load_state_dict(strict=True)`.

    Every published set of keys of the variant is recognised by its keys, ours too, whatever prefix they have. Of a
    detector, segmenter or pyramid, the backbone with what it has of `level_norms`: for the model inside
    `create_model(..., features_only=True)`.

    Raises:
        CheckpointError: if keys or shapes do not fit; the classifier may have any number of classes and the
            first convolution any number of channels.
        ConfigError: for an unknown name.
    """
    config, state = load_config(split_tag(name)[0]), as_state_dict(state_dict)
    targets = timm_models.meta_state(config, level_norm=True)
    dense = not recognise(state, config.checkpoints, targets).has_classifier()
    may_lack = (timm_models.LEVEL_NORMS, *(DENSE_LACKS if dense else ()))
    optional = [name for name in targets if name.startswith(may_lack)]
    return fit(state, config.checkpoints, targets, timm_models.adaptable(config), optional)[0]


def load_checkpoint(model: nn.Module, source: str | PathLike[str] | StateDict, use_ema: bool = True) -> LoadReport:
    """Load a checkpoint, in any published form of the model's variant or in ours, into `model`.

    What the model has been built without (classifier, pruned stages, norms of levels) is dropped and reported; a
    relative position table of another window is interpolated and reported. What has a prefix, as a detector's backbone
    and the model of a training script have, is found by its names, and the prefix reported. Everything else must fit.

    Args:
        model: made by `zoo.create_model` or `timm.create_model("zoo_...")`.
        source: a `.pth`, `.pth.tar`, `.ckpt`, `.bin` or `.safetensors` file, or a state dict.
        use_ema: of a checkpoint that holds trained weights and their moving average take the average.

    Raises:
        CheckpointError: if the file cannot be read or does not fit; the model is then left as it was.
        ConfigError: if `model` is not a model of the zoo.
    """
    return _load(model, find(source, use_ema))


def _load(model: nn.Module, found: Found, adapt: bool = False) -> LoadReport:
    """Load what was found; to `adapt` is to draw a classifier anew where there is none, and to take other channels."""
    backbone = backbone_of(model)
    config, own = backbone.config, backbone.state_dict()
    targets = timm_models.meta_state(config, backbone.in_chans, backbone.num_classes or 1000, True)
    absent = {name for name in targets if name not in own}
    may_lack = (timm_models.LEVEL_NORMS, *(DENSE_LACKS if adapt and backbone.num_classes else ()))
    optional = {name for name in targets if name.startswith(may_lack)}
    free = absent | set(timm_models.adaptable(config) if adapt else ())
    tensors, report = fit(found.tensors, config.checkpoints, targets, free, absent | optional)
    if adapt:
        tensors = timm_models.with_channels(tensors, config, backbone.in_chans)
    loaded = {name: value for name, value in tensors.items() if name in own}
    fresh = {name: value for name, value in own.items() if name not in loaded}
    if any(value.is_meta and not own[name].is_meta for name, value in loaded.items()):
        raise CheckpointError("the checkpoint is on the meta device, which holds no numbers: load one with values")
    wrong = nonfinite(loaded)
    backbone.load_state_dict(fresh | loaded, strict=True)
    dropped = (*report.dropped, *(name for name in tensors if name in absent))
    return dataclasses.replace(
        report, loaded=tuple(loaded), dropped=dropped, nonfinite=wrong, fresh=tuple(fresh), part=found.part
    )


def backbone_of(model: nn.Module) -> Backbone:
    """The backbone inside compilers', data parallel and feature wrappers.

    Raises:
        ConfigError: if there is none.
    """
    inside: nn.Module | None = model
    while inside is not None and not isinstance(inside, Backbone):
        wrapped = [getattr(inside, name, None) for name in ("_orig_mod", "module", "model")]
        inside = next((module for module in wrapped if isinstance(module, nn.Module)), None)
    if inside is None:
        raise ConfigError(f"a {type(model).__name__} is not a model of the zoo: make it with zoo.create_model")
    return inside


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a variant.

    Attributes:
        params: parameters, with a classifier of 1000 classes.
        gmacs: 1e9 multiply-adds of one forward pass at `img_size`, counted.
        img_size: (height, width) in pixels.
        channels, reductions: of the four feature maps.
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
    channels: tuple[int, ...]
    reductions: tuple[int, ...]
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
        img_size: where to count multiply-adds; None for the variant's own size.

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
        channels=tuple(level["num_chs"] for level in model.feature_info),
        reductions=tuple(level["reduction"] for level in model.feature_info),
        top1=first and (first.top1 or first.top1_timm),
        licence_code=first and first.licence_code,
        licence_weights=first and first.licence_weights,
        sources=sources_of(entries),
        input_transform=first.input_transform if first else {},
        checkpoints=tuple(entries),
    )
