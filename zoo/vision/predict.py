"""ImageNet labels for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_model_data_config
from torch import nn

from zoo.errors import CheckpointError
from zoo.models import convert_checkpoint, create_model, split_tag
from zoo.timm_models import CLASSIFIER
from zoo.weights.files import read_checkpoint


@dataclass(frozen=True)
class Prediction:
    """A label and its softmax probability, 0 to 1."""

    label: str
    index: int
    probability: float


def load_classifier(name: str, checkpoint: str | PathLike[str] | None = None, pretrained: bool = False) -> nn.Module:
    """A classifier with trained weights, in evaluation mode, with as many classes as its checkpoint.

    Raises:
        CheckpointError: if neither a checkpoint nor `pretrained` is given, or the weights do not fit.
        ConfigError: for an unknown name.
    """
    if checkpoint is None and not pretrained:
        variant, _ = split_tag(name)
        raise CheckpointError(
            f"{name} has no trained weights yet, so its labels would be made up. Pass --checkpoint FILE with a "
            f"published or own checkpoint, or --pretrained to download one; `zoo info {variant}` lists where they are."
        )
    if checkpoint is None:
        return create_model(name, pretrained=True).eval()
    state = convert_checkpoint(read_checkpoint(checkpoint), name)
    return create_model(name, checkpoint=state, num_classes=len(state[f"{CLASSIFIER}.weight"])).eval()


@torch.inference_mode()
def predict(model: nn.Module, images: Sequence[Image.Image], topk: int = 5) -> list[list[Prediction]]:
    """The `topk` likeliest labels of each picture, best first, under the model's own input transform."""
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    names = class_names(model)
    found = []
    for image in images:
        probabilities = model(transform(image)[None]).softmax(dim=1)[0]
        best = probabilities.topk(min(topk, len(probabilities)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        found.append([Prediction(names(index), index, value) for index, value in pairs])
    return found


def class_names(model: nn.Module):
    """A function from class index to name: ImageNet's where the number of classes is one of ImageNet's."""
    subset = infer_imagenet_subset(model)
    if subset is None:
        return lambda index: f"class {index}"
    info = ImageNetInfo(subset)
    return lambda index: info.index_to_description(index)
