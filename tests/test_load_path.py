"""One model is one parse, one conversion, one build, whatever door it comes through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.cbook import get_sample_data
from typer.testing import CliRunner

import zoo
from tests.conftest import SMALLEST
from zoo.cli.main import app
from zoo.config import catalog
from zoo.nn.backbone import Backbone
from zoo.weights import load

PHOTO = str(get_sample_data("grace_hopper.jpg", asfileobj=False))
NAME = SMALLEST["dinat"]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often configurations were parsed, checkpoints converted and backbones built."""
    found: Counter[str] = Counter()

    def spy(owner: object, name: str, label: str) -> None:
        original: Callable = getattr(owner, name)

        def counted(*args: object, **kwargs: object) -> object:
            found[label] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    spy(catalog, "parse_model", "parsed")
    spy(load, "convert", "converted")
    spy(Backbone, "__init__", "built")
    catalog._load_shipped.cache_clear()
    return found


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(zoo.create_model(NAME, num_classes=10).state_dict(), tmp_path / "model.pth")
    return tmp_path / "model.pth"


def test_a_checkpoint(checkpoint: Path, counts: Counter[str]) -> None:
    zoo.create_model(NAME, checkpoint=checkpoint)
    assert counts == {"parsed": 1, "converted": 1, "built": 1}


@pytest.mark.parametrize("settings", [{"features_only": True}, {"num_classes": 3}, {"drop_path_rate": 0.5}])
def test_a_checkpoint_for_something_else(checkpoint: Path, counts: Counter[str], settings: dict) -> None:
    zoo.create_model(NAME, checkpoint=checkpoint, **settings)
    assert counts == {"parsed": 1, "converted": 1, "built": 1}


def test_the_command(checkpoint: Path, counts: Counter[str]) -> None:
    result = CliRunner().invoke(app, ["predict", PHOTO, "-m", NAME, "-c", str(checkpoint)])
    assert result.exit_code == 0, result.output
    assert counts == {"parsed": 1, "converted": 1, "built": 1}


def test_drawn_weights(counts: Counter[str]) -> None:
    for _ in range(2):
        zoo.create_model(NAME)
    assert counts == {"parsed": 1, "built": 2}


def test_weights_stay_their_owners(checkpoint: Path) -> None:
    """Neither a state dict at hand nor a published tensor that was split shares memory with a model."""
    state = torch.load(checkpoint)
    before = {name: value.clone() for name, value in state.items()}
    model = zoo.create_model(NAME, checkpoint=state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    places = [value.untyped_storage().data_ptr() for value in model.state_dict().values() if value.numel()]
    assert len(places) == len(set(places))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_are_of_the_default_kind(checkpoint: Path, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        model = zoo.create_model(NAME, checkpoint=checkpoint, num_classes=4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in model.parameters()} == {dtype}
    assert all(value.requires_grad and not value.is_meta for value in model.parameters())
