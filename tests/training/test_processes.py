"""Several processes compute what one computes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import zoo_command
from zoo.training.engine import train
from zoo.training.recipe import Recipe

pytestmark = pytest.mark.slow


def history(folder: Path) -> list[list[float]]:
    with (folder / "history.csv").open() as file:
        return [[float(row[key]) for key in ("train_loss", "loss", "top1")] for row in csv.DictReader(file)]


@pytest.fixture
def one(tiny: Callable[..., Recipe], tmp_path: Path) -> tuple[Path, Path]:
    """The recipe of a run in one process, and its output."""
    recipe, output = tiny(clip_grad=1.0, micro_batch=3), tmp_path / "one"
    train(recipe, output)
    return output / "run.yaml", output


@pytest.mark.parametrize("setting", ["fsdp=false", "fsdp=true"])
def test_two_processes_train_as_one(one: tuple[Path, Path], tmp_path: Path, setting: str) -> None:
    """Losses to 1e-5, with micro-batches, clipping and augmentation; and a run of two goes on in one."""
    recipe, first = one
    second = tmp_path / "two"
    zoo_command("train", str(recipe), "-o", str(second), "--set", setting, processes=2)
    for ours, theirs in zip(history(second), history(first), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    weights, expected = (load_file(path / "last.safetensors") for path in (second, first))
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=1e-4)
    shards = "--set", setting
    options = ["--resume", "auto", *shards] if setting == "fsdp=false" else []
    if options:
        assert "top-1" in zoo_command("train", "-o", str(second), *options)


def test_two_processes_validate_as_one(one: tuple[Path, Path], folder: Path, tmp_path: Path) -> None:
    """With a number of images that two batches of two processes do not divide."""
    checkpoint, found = one[1] / "best.safetensors", []
    for processes in (1, 2):
        path = tmp_path / f"{processes}.json"
        arguments = ["--data", str(folder), "-c", str(checkpoint), "-o", str(path), "--batch-size", "7", "--workers", "0"]
        zoo_command("validate", *arguments, processes=processes)
        found.append(json.loads(path.read_text()))
    for result in found:
        result.pop("images_per_second")
        per_class = result.pop("per_class")
        assert per_class == found[0].get("classes", per_class)
    assert found[0] == pytest.approx(found[1], abs=1e-12)
    assert found[0]["images"] == 48
