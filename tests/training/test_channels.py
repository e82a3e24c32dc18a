"""Images of one, four and twelve channels are trained, validated and predicted on as they are stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from tests.test_cli import run
from tests.training.conftest import COLOURS
from zoo.errors import ConfigError
from zoo.training.data.augmentation import left_out, training_transform
from zoo.training.engine import train
from zoo.training.recipe import Recipe, load_recipe
from zoo.vision import load_classifier
from zoo.vision.images import ImageError, input_config, read_image

Maker = Callable[..., Recipe]


def pixels(channels: int, kind: str, seed: int = 0) -> np.ndarray:
    """(9, 11, channels) of all values that integers of this kind have, of floats from 0 to 1."""
    generator = np.random.default_rng(seed)
    most = np.iinfo(kind).max if np.dtype(kind).kind in "iu" else 1
    return (generator.random((9, 11, channels)) * most).astype(kind)


def write(path: Path, values: np.ndarray) -> None:
    """An array (H, W, C) in the form that the extension says."""
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values).save(path)


FORMS = [
    ("grey.png", 1, "uint8"), ("grey16.png", 1, "uint16"), ("grey16.tif", 1, "uint16"), ("float.tif", 1, "float32"),
    ("rgba.png", 4, "uint8"), ("rgba.tif", 4, "uint8"), ("grey_alpha.png", 2, "uint8"), ("one.npy", 1, "uint8"),
    ("four.npy", 4, "uint16"), ("twelve.npy", 12, "uint16"), ("signed.npy", 12, "int16"), ("double.npy", 5, "float64"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "channels", "kind"), FORMS)
def test_every_form_is_read_as_it_is_stored(tmp_path: Path, name: str, channels: int, kind: str) -> None:
    values = pixels(channels, kind)
    write(tmp_path / name, values)
    most = np.iinfo(kind).max if np.dtype(kind).kind in "iu" else 1
    expected = torch.from_numpy(values.astype(np.float32) / most).permute(2, 0, 1)
    torch.testing.assert_close(read_image(tmp_path / name, channels), expected)
    with pytest.raises(ImageError, match=rf"{name}: .*\b{channels}\b.*expected .*{channels + 4}"):
        read_image(tmp_path / name, channels + 4)


def test_palettes_flat_arrays_and_what_cannot_be_read(tmp_path: Path) -> None:
    Image.fromarray(pixels(4, "uint8")).quantize(16).save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png", 4).shape == (4, 9, 11)
    np.save(tmp_path / "flat.npy", pixels(1, "uint8")[:, :, 0])
    assert read_image(tmp_path / "flat.npy", 1).shape == (1, 9, 11)
    for array, message in (
        (np.full((3, 3, 4), np.nan), "not finite"),
        (np.zeros((4, 3, 3)), r"shape \(4, 3, 3\), expected \(height, width, 4 channels\)"),
        (np.zeros((3, 3, 4), np.int64), "an array of int64, expected one of"),
        (np.array([{}]), "pickle"),
    ):
        np.save(tmp_path / "bad.npy", array)
        with pytest.raises(ImageError, match=message):
            read_image(tmp_path / "bad.npy", 4)
    (tmp_path / "bands.tif").write_bytes(b"II*\x00none")
    with pytest.raises(ImageError, match=r"save images of more than 4 channels as .npy \(H, W, C\)"):
        read_image(tmp_path / "bands.tif", 12)


def write_classes(root: Path, channels: int, suffix: str, kind: str) -> Path:
    for name in COLOURS:
        (root / name).mkdir(parents=True)
        for i in range(6):
            write(root / name / f"{i}{suffix}", pixels(channels, kind, i))
    return root


@pytest.mark.parametrize(
    ("channels", "suffix", "kind"), [(1, ".png", "uint16"), (4, ".png", "uint8"), (12, ".npy", "uint16")]
)
def test_a_run_from_images_to_labels(tiny: Maker, tmp_path: Path, channels: int, suffix: str, kind: str) -> None:
    data, said = write_classes(tmp_path / "data", channels, suffix, kind), []
    mean, std = [i / 100 for i in range(channels)], [0.5 + i / 100 for i in range(channels)]
    recipe = tiny(data=str(data), in_chans=channels, mean=mean, std=std, epochs=1, auto_augment="rand-m9", workers=0)
    train(recipe, tmp_path / "run", say=said.append)
    assert f"images of {channels} channels: auto_augment" in said[0]
    assert not (tmp_path / "run" / "images.csv").exists()
    best = str(tmp_path / "run" / "best.safetensors")
    model = zoo.create_model(best)
    assert model.in_chans == channels
    config = input_config(model)
    assert (list(config["mean"]), list(config["std"])) == (mean, std)
    found = tmp_path / "found.json"
    run("validate", "--data", str(data), "-c", best, "--workers", "0", "-o", str(found))
    assert json.loads(found.read_text())["images"] == 18
    table = run("predict", str(data), "-c", best, "--topk", "1")
    assert sum("%" in line for line in table.splitlines()) == 18
    Image.new("RGB", (9, 9)).save(tmp_path / "rgb.png")
    text = " ".join(run("predict", str(tmp_path / "rgb.png"), "-c", best, fails=True).split())
    assert f"rgb.png: cannot be read as a picture (3 channels, RGB, expected {channels})" in text
    with pytest.raises(ConfigError, match=f"are for {channels} channels: pass --set in_chans={channels}"):
        train(tiny(model=best, overrides={}, epochs=1, workers=0), tmp_path / "other")


def test_images_of_other_channels_end_a_run_with_the_reason(tiny: Maker, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\d+.png: 3 channels, RGB, expected 4"):
        train(tiny(in_chans=4, mean=None, std=None, workers=0), tmp_path / "run")


def test_weights_of_rgb_and_of_other_channels_are_adapted(tmp_path: Path) -> None:
    for channels in (3, 4):
        model = zoo.create_model("nat_mini", in_chans=channels, num_classes=2)
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        loaded = load_classifier("nat_mini", tmp_path / "weights.pth")
        assert loaded.in_chans == channels
        assert len(input_config(loaded)["mean"]) == channels
    adapted = zoo.create_model("nat_mini", checkpoint=tmp_path / "weights.pth", in_chans=12, num_classes=2)
    assert len(set(input_config(adapted)["mean"])) == 1
    assert len(input_config(adapted)["std"]) == 12


def test_mean_and_std_are_one_number_or_one_a_channel() -> None:
    needed = {"model": "davit_tiny", "data": "none", "in_chans": 12}
    assert load_recipe("finetune", {**needed, "mean": 0.5, "std": [1] * 12}).mean == (0.5,) * 12
    for key in ("mean", "std"):
        with pytest.raises(ConfigError, match=f"{key}: found .*expected one number or 12, as in_chans is 12"):
            load_recipe("finetune", {**needed, key: [0.5, 0.5, 0.5]})


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
@pytest.mark.parametrize("name", ["finetune", "scratch", "linear-probe"])
def test_shipped_recipes_augment_any_channels(name: str, channels: int) -> None:
    recipe = load_recipe(name, {"model": "davit_tiny", "data": "none", "in_chans": channels})
    config = {"input_size": (channels, 24, 24), "interpolation": "bicubic", "mean": (0.5,) * channels}
    transform = training_transform(recipe, {**config, "std": (0.5,) * channels})
    for _ in range(5):
        assert transform(torch.rand(channels, 30, 40)).shape == (channels, 24, 24)
    assert bool(left_out(recipe)) == bool(recipe.auto_augment or recipe.color_jitter)
