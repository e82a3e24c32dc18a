"""Pictures as inputs of a model, under its own transform."""

from __future__ import annotations

import logging
from collections.abc import Callable
from os import PathLike
from pathlib import Path

import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

from zoo.models.load import backbone_of
from zoo.vision.folders import extensions, images_below
from zoo.vision.images import ImageError, input_config, read_image

_logger = logging.getLogger(__name__)


def input_transform(
    model: nn.Module, size: tuple[int, int] | None = None
) -> Callable[[Image.Image | torch.Tensor], torch.Tensor]:
    """A function from pictures to images (C, H, W), resized, cropped and normalised as the model's weights require.

    Args:
        size: (height, width); None for the model's own.
    """
    config = input_config(model)
    if size is not None:
        config["input_size"] = (config["input_size"][0], *size)
    return create_transform(**config, is_training=False)


def read_inputs(
    model: nn.Module, folder: str | PathLike[str], size: tuple[int, int] | None = None, most: int = 256
) -> list[torch.Tensor]:
    """Pictures of a folder and those below it as images (1, C, H, W), under the transform of `predict`.

    Pictures that cannot be read are passed over with a warning.

    Args:
        size: (height, width) of the images; None for the model's own.
        most: the most pictures to read, evenly spread over the folder.

    Raises:
        ImageError: if there is no picture that can be read.
        OSError: if a folder cannot be read.
    """
    if not Path(folder).is_dir():
        raise ImageError(f"{folder}: is not a folder, expected one with pictures")
    channels, transform = backbone_of(model).in_chans, input_transform(model, size)
    paths = images_below(Path(folder), channels)
    count = min(most, len(paths))
    found = []
    for path in (paths[i * len(paths) // count] for i in range(count)):
        try:
            found.append(transform(read_image(path, channels))[None])
        except ImageError as error:
            _logger.warning("%s; it is passed over", error)
    if not found:
        kinds = ", ".join(extensions(channels))
        raise ImageError(f"{folder}: holds no pictures that can be read, which are looked for as {kinds}")
    return found
