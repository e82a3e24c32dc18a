"""timm's augmentation as a recipe asks for it."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageOps
from timm.data import auto_augment, create_transform

from zoo.training.recipe import Recipe


def training_transform(recipe: Recipe, input_config: dict[str, Any]) -> Any:
    """timm's augmentation for a recipe; `input_config` as of `resolve_model_data_config`."""
    auto_augment.NAME_TO_OP |= dict.fromkeys(("Posterize", "PosterizeIncreasing", "PosterizeOriginal"), _posterize)
    return create_transform(
        input_config["input_size"],
        is_training=True,
        scale=recipe.crop_scale,
        ratio=recipe.crop_ratio,
        hflip=recipe.hflip,
        color_jitter=recipe.color_jitter or None,
        auto_augment=recipe.auto_augment,
        re_prob=recipe.random_erasing,
        interpolation=input_config["interpolation"],
        mean=input_config["mean"],
        std=input_config["std"],
    )


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """With no bits left an image is black; Pillow 12 and later refuses that, and timm's magnitudes come to it."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits >= 1 else Image.new(image.mode, image.size)
