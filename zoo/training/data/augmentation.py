"""timm's augmentation, configured by a recipe."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageOps
from timm.data import auto_augment, create_transform

from zoo.errors import ConfigError
from zoo.training.recipe import Recipe


def training_transform(recipe: Recipe, input_config: dict[str, Any]) -> Any:
    """timm's augmentation for a recipe, of colours only for RGB; `input_config` as in `zoo.vision.images`.

    Raises:
        ConfigError: for an `auto_augment` that timm does not know.
    """
    auto_augment.NAME_TO_OP |= dict.fromkeys(("Posterize", "PosterizeIncreasing", "PosterizeOriginal"), _posterize)
    colours = input_config["input_size"][0] == 3
    try:
        return create_transform(
            input_config["input_size"],
            is_training=True,
            scale=recipe.crop_scale,
            ratio=recipe.crop_ratio,
            hflip=recipe.hflip,
            color_jitter=(recipe.color_jitter if colours else 0.0) or None,  # type: ignore[arg-type]  # None turns it off
            auto_augment=recipe.auto_augment if colours else None,
            re_prob=recipe.random_erasing,
            interpolation=input_config["interpolation"],
            mean=input_config["mean"],
            std=input_config["std"],
        )
    except (AssertionError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(
            f"auto_augment is {recipe.auto_augment!r}, which timm does not understand ({error}); expected something "
            "like 'rand-m9-mstd0.5-inc1', 'augmix-m5-w4-d2', '3a', 'original' or 'v0', or null"
        ) from error


def left_out(recipe: Recipe) -> str | None:
    """A sentence about augmentation that the recipe requests but its number of channels rules out, if any."""
    asked = [key for key in ("auto_augment", "color_jitter") if getattr(recipe, key)]
    if recipe.in_chans == 3 or not asked:
        return None
    return f"images of {recipe.in_chans} channels: {' and '.join(asked)} change RGB colours and are left out"


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """With zero bits an image is black. Pillow 12 and later refuse zero bits, which timm's magnitudes can reach."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits >= 1 else Image.new(image.mode, image.size)
