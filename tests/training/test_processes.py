"""Several processes compute what one computes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.torch_version import TorchVersion

from tests.training.conftest import TINY, write_images, zoo_command
from zoo.training.engine import train
from zoo.training.recipe import load_recipe
from zoo.training.validate import Validation, validate

pytestmark = pytest.mark.slow
EVERY_OPERATION = """
- dim: 24
  depth: 5
  attn:
    cycle:
      - {type: window, norm: layernorm, head_dim: 12, size: 4, pos_bias: table}
      - {type: window, norm: layernorm, head_dim: 12, size: 4, interval: grid, pos_bias: mlp}
      - {type: neighborhood, norm: layernorm, head_dim: 12, size: 3, dilation: 2}
      - {type: routing, norm: layernorm, head_dim: 12, regions: 2, topk: 2}
      - {type: aggregated, norm: layernorm, head_dim: 12, pool: 2, pretrained: 8, trained: 8}
- dim: 32
  depth: 4
  attn:
    cycle:
      - {type: channel, norm: layernorm, head_dim: 16}
      - {type: hilo, norm: layernorm, head_dim: 16, alpha: 0.5}
      - {type: cosine, norm: layernorm, head_dim: 16, pretrained: 4, trained: 4}
      - {type: global, norm: layernorm, head_dim: 16, lepe: values}
"""


def history(folder: Path) -> list[list[float]]:
    with (folder / "history.csv").open() as file:
        return [[float(row[key]) for key in ("train_loss", "loss", "top1")] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run in one process: every attention operation, micro-batches, clipping and augmentation.

    SGD, because Adam makes steps of one size of gradients that are nothing but rounding.
    """
    root = tmp_path_factory.mktemp("one")
    overrides = {**TINY["overrides"], "stages": yaml.safe_load(EVERY_OPERATION)}
    changes = {**TINY, "overrides": overrides, "data": str(write_images(root / "images"))}
    train(
        load_recipe("digits", {**changes, "clip_grad": 1.0, "micro_batch": 3, "optimizer": "sgd", "lr": 0.1}),
        root / "run",
    )
    return root / "run"


@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP"])
def test_two_processes_train_as_one(one: Path, tmp_path: Path, sharded: bool) -> None:
    """Losses to 1e-5; a sharded run is taken up again from the state before the last."""
    run, options = tmp_path / "two", ["--set", f"fsdp={str(sharded).lower()}"]
    if sharded and TorchVersion(torch.__version__) < "2.8":  # whose gradients would be sums
        output = zoo_command("train", str(one / "run.yaml"), "-o", str(run), *options, processes=2, fails=True)
        assert "adds gradients up on cpu" in output
        return
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
