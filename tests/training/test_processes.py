"""Several processes compute what one computes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import TINY, write_images, zoo_command
from zoo.training.engine import train
from zoo.training.recipe import load_recipe
from zoo.training.validate import Validation, validate

pytestmark = pytest.mark.slow


def history(folder: Path) -> list[list[float]]:
    with (folder / "history.csv").open() as file:
        return [[float(row[key]) for key in ("train_loss", "loss", "top1")] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run in one process, with micro-batches, clipping and augmentation."""
    root = tmp_path_factory.mktemp("one")
    images = write_images(root / "images")
    train(load_recipe("digits", {**TINY, "data": str(images), "clip_grad": 1.0, "micro_batch": 3}), root / "run")
    return root / "run"


@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP"])
def test_two_processes_train_as_one(one: Path, tmp_path: Path, sharded: bool) -> None:
    """Losses to 1e-5; a sharded run is taken up again from the state before the last."""
    run, options = tmp_path / "two", ["--set", f"fsdp={str(sharded).lower()}"]
    zoo_command("train", str(one / "run.yaml"), "-o", str(run), *options, processes=2)
    if sharded:
        max((run / "state").iterdir()).unlink()
        (run / "last.safetensors").unlink()
        output = zoo_command("train", "-o", str(run), "--resume", "auto", *options, processes=2)
        assert "goes on at step 4, epoch 2" in output
    for ours, theirs in zip(history(run), history(one), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    weights, expected = (load_file(path / "last.safetensors") for path in (run, one))
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=1e-4)


def test_two_processes_validate_as_one(one: Path, tmp_path: Path) -> None:
    """With a number of images that two batches of two processes do not divide."""
    data, checkpoint, path = one.parent / "images", str(one / "best.safetensors"), tmp_path / "two.json"
    options = ["--data", str(data), "-c", checkpoint, "-o", str(path), "--batch-size", "7", "--workers", "0"]
    zoo_command("validate", *options, processes=2)
    found, task = json.loads(path.read_text()), Validation(str(data), batch_size=48, workers=0)
    expected = validate(task, None, checkpoint)
    for result in (found, expected):
        result.pop("images_per_second")
    assert found.pop("per_class") == expected.pop("per_class")
    assert found == pytest.approx(expected, abs=1e-9)
    assert found["images"] == 48
