"""Gradient-based explanations: the receptive field of a position, and Grad-CAM of a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from PIL import Image
from torch import nn

from zoo.explain.watch import at_rest, check_point
from zoo.models.load import backbone_of
from zoo.vision.images import as_input
from zoo.vision.predict import class_names


@dataclass(frozen=True)
class ReceptiveField:
    """How much each pixel of `image` influences the features of stage `stage` at the pixel `point`, (x, y).

    Attributes:
        gradient: (H, W), float32, not negative: root mean square over channels, summed over colours.
        stride: pixels per position of the stage's map.
    """

    image: Image.Image
    point: tuple[int, int]
    stage: int
    gradient: torch.Tensor
    stride: int


@dataclass(frozen=True)
class ClassMap:
    """Where `image` looks like a class.

    Attributes:
        label, index: of the class.
        weights: (H, W), float32, from 0 to 1.
    """

    image: Image.Image
    label: str
    index: int
    weights: torch.Tensor


@torch.inference_mode(False)
def receptive_field(
    model: nn.Module,
    image: Image.Image,
    point: tuple[int, int] | None = None,
    stage: int = -1,
    samples: int = 16,
) -> ReceptiveField:
    """The effective receptive field of one position (Luo et al. 2016, https://arxiv.org/abs/1701.04128, section 2).

    The mean over channels is estimated from sums of all channels with fixed random signs: the expected square of such a
    gradient is the sum of the squares.

    Args:
        model: made by `zoo.create_model`, in any wrapper; it is left as `explain` leaves it.
        image: an RGB picture of any size; it is not resized.
        point: (x, y) in pixels; the centre when None.
        stage: index of the stage, 0 to 3, or negative from the end.
        samples: backward passes.

    Raises:
        ConfigError: if `model` is not from the zoo.
        ValueError: if the point lies outside the picture, or there is no such stage.
    """
    backbone, point = backbone_of(model), check_point(image, point)
    generator = torch.Generator().manual_seed(0)
    with at_rest(backbone), torch.enable_grad():
        pixels = as_input(backbone, image).requires_grad_()
        found = backbone.forward_intermediates(pixels, [stage], stop_early=True, intermediates_only=True)
        (maps,) = cast("list[torch.Tensor]", found)
        stride = backbone.feature_info[stage]["reduction"]
        x, y = (min(p // stride, n - 1) for p, n in zip(point, reversed(maps.shape[2:]), strict=True))
        features, squares = maps[0, :, y, x], torch.zeros_like(pixels[0], dtype=torch.float32)
        for _ in range(samples):
            signs = torch.randint(2, features.shape, generator=generator).to(features) * 2 - 1
            (gradient,) = torch.autograd.grad(features, pixels, signs, retain_graph=True)
            squares = squares + gradient[0].float().square() / (samples * len(features))
    return ReceptiveField(image, point, stage % len(backbone.levels), squares.sqrt().sum(0).cpu(), stride)


@torch.inference_mode(False)
def grad_cam(model: nn.Module, image: Image.Image, label: int | None = None) -> ClassMap:
    """Grad-CAM of a class on the map of the last stage (https://arxiv.org/abs/1610.02391), by pytorch-grad-cam.

    Args:
        model: a classifier made by `zoo.create_model`, in any wrapper; it is left as `explain` leaves it.
        image: an RGB picture of any size; it is not resized.
        label: index of the class; the most likely one when None.

    Raises:
        ConfigError: if `model` is not from the zoo.
        ImportError: if pytorch-grad-cam is not installed.
        ValueError: if the model has no classifier, or no such class.
    """
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise ImportError("Grad-CAM needs pytorch-grad-cam: pip install 'vision-zoo[explain]'") from error
    backbone = backbone_of(model)
    if backbone.num_classes == 0:
        raise ValueError("the model has no classifier to explain: make it without features_only and num_classes=0")
    if label is not None and not 0 <= label < backbone.num_classes:
        raise ValueError(f"label is {label}, expected 0 to {backbone.num_classes - 1}")
    with at_rest(backbone), torch.enable_grad():
        pixels = as_input(backbone, image).requires_grad_()  # the parameters require no gradient, so the input must
        with GradCAM(backbone, [backbone.stages[-1]]) as cam:
            targets = None if label is None else [ClassifierOutputTarget(label)]
            weights = torch.from_numpy(cam(pixels, targets)[0])
            index = int(cam.outputs.argmax()) if label is None else label
    return ClassMap(image, class_names(backbone)(index), index, weights)
