"""Labels for pictures: ImageNet's, or those that a checkpoint of `zoo train` was trained with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from zoo.errors import CheckpointError
from zoo.models.create import create_model
from zoo.models.load import backbone_of
from zoo.models.stored import describes_itself, is_stored
from zoo.models.variants import split_tag
from zoo.vision.inputs import input_transform

DEFAULT = "davit_tiny"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """A label and its softmax probability, 0 to 1."""

    label: str
    index: int
    probability: float


def load_classifier(
    name: str | None = None, checkpoint: str | PathLike[str] | None = None, pretrained: bool = False
) -> nn.Module:
    """A classifier with trained weights, in evaluation mode, with as many classes and channels as its checkpoint.

    Args:
        name: as for `zoo.create_model`; None for the model named in the checkpoint, or `davit_tiny`.

    Raises:
        CheckpointError: if neither a checkpoint nor `pretrained` is given, or the weights do not fit.
        ConfigError: for an unknown name.
    """
    if name is None and checkpoint is not None and describes_itself(Path(checkpoint)):
        return create_model(str(checkpoint)).eval()
    if name is None and checkpoint is not None and Path(checkpoint).is_file():
        _logger.warning(
            "%s does not say which model it is of: %s is assumed, unless --model names it", checkpoint, DEFAULT
        )
    name = name or DEFAULT
    if checkpoint is None and is_stored(name):
        return create_model(name).eval()
    if checkpoint is None and not pretrained:
        variant, _ = split_tag(name)
        raise CheckpointError(
            f"{name} has no trained weights yet, so its labels would be made up. Pass --checkpoint FILE with a "
            f"published or own checkpoint, or --pretrained to download one; `zoo info {variant}` lists where they are."
        )
    if checkpoint is None:
        return create_model(name, pretrained=True).eval()
    return create_model(name, checkpoint=checkpoint).eval()


def is_trained(name: str, pretrained: bool, checkpoint: str | PathLike[str] | None) -> bool:
    """Whether these arguments select trained weights instead of random ones."""
    return pretrained or checkpoint is not None or is_stored(name)


@torch.inference_mode()
def predict(model: nn.Module, images: Sequence[Image.Image | torch.Tensor], topk: int = 5) -> list[list[Prediction]]:
    """The `topk` likeliest labels of each picture, best first, under the model's own input transform.

    Args:
        images: RGB pictures; for a model with other channels, tensors (C, H, W) from `read_image`.
    """
    transform = input_transform(model)
    names = class_names(model)
    found = []
    for image in images:
        probabilities = model(transform(image)[None]).softmax(dim=1)[0]
        best = probabilities.topk(min(topk, len(probabilities)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        found.append([Prediction(names(index), index, value) for index, value in pairs])
    return found


def class_names(model: nn.Module) -> Callable[[int], str]:
    """A function from class index to name: the model's own, or ImageNet's if the number of classes matches."""
    described = backbone_of(model).pretrained_cfg
    if own := described.get("label_names"):
        words = described.get("label_descriptions") or {}
        return lambda index: words.get(own[index], own[index])
    subset = infer_imagenet_subset(model)
    if subset is None:
        return lambda index: f"class {index}"
    info = ImageNetInfo(subset)
    return lambda index: info.index_to_description(index)
