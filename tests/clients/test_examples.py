"""The examples run and their data set is right; that they learn is for the examples themselves to say."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torchvision.ops import masks_to_boxes

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(params=["shapes", "train_detector", "train_segmenter"])
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(request.param)


@pytest.mark.parametrize("example", ["shapes"], indirect=True)
def test_shapes(example: ModuleType) -> None:
    """An item is always the same, other items and the held-out ones differ, and boxes enclose what is seen."""
    data, again, held_out = example.Shapes(20, 64), example.Shapes(20, 64), example.Shapes(20, 64, held_out=True)
    for i in range(20):
        image, target = data[i]
        assert torch.equal(image, again[i][0])
        assert not torch.equal(image, data[i - 1 if i else 19][0])
        assert not torch.equal(image, held_out[i][0])
        assert image.shape == (3, 64, 64)
        assert 0 <= image.min() <= image.max() <= 1
        assert 1 <= len(target["labels"]) <= 4
        assert not (target["masks"].sum(dim=0) > 1).any()
        assert torch.equal(target["boxes"][:, :2], masks_to_boxes(target["masks"])[:, :2])
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()


@pytest.mark.parametrize("example", ["train_detector", "train_segmenter"], indirect=True)
def test_a_step_of_training(example: ModuleType, tmp_path: Path) -> None:
    model = example.build()
    example.train(model.train(), 1)
    assert all(0 <= score <= 1 for score in example.evaluate(model.eval(), 8).values())
    example.draw(model, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
