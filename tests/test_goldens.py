"""Every published variant gives what the published code gives with the same weights."""

from __future__ import annotations

import pytest
import torch

import zoo
from tests import golden
from tests.conftest import VARIANTS

LARGE = 100e6
TOLERANCE = 3e-5


def _parameters() -> list:
    marked = []
    for name in golden.NAMES:
        large = golden.Golden(name).info["num_params"] > LARGE
        marked.append(pytest.param(name, marks=[pytest.mark.slow] if large else []))
    return marked


@pytest.mark.parametrize("name", _parameters())
def test_published_weights_give_published_outputs(name: str) -> None:
    record = golden.Golden(name)
    variant, arrays = record.info["variant"], record.arrays
    model = zoo.create_model(variant, num_classes=record.info["num_classes"]).eval()
    assert sum(p.numel() for p in model.parameters()) == record.info["num_params"]
    model.load_state_dict(zoo.convert_checkpoint(record.state_dict(), variant), strict=True)

    with torch.inference_mode():
        last, stages = model.forward_intermediates(record.images())
        logits = model.forward_head(last)

    published = torch.from_numpy(arrays["logits"])
    assert (logits[:, : published.shape[1]] - published).abs().max() < TOLERANCE * float(arrays["logits_std"])
    for i, stage in enumerate(stages):
        assert tuple(stage.shape) == tuple(arrays[f"stage{i}_shape"])
        spread = stage.std()
        found = {
            "mean": stage.mean(dim=(0, 2, 3))[:64],
            "std": stage.std(dim=(0, 2, 3), unbiased=False)[:64],
            "corner": stage[:, :4, :2, :2],
        }
        for what, value in found.items():
            assert (value - torch.from_numpy(arrays[f"stage{i}_{what}"])).abs().max() < 1e-4 * spread, (i, what)


def test_every_variant_has_a_record() -> None:
    assert {golden.Golden(name).info["variant"] for name in golden.NAMES} == set(VARIANTS)
