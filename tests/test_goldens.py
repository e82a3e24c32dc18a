"""Every published variant gives what the published code gives with the same weights, at its own size and at others."""

from __future__ import annotations

import pytest
import torch

import zoo
from tests import golden
from tests.conftest import PUBLISHED
from zoo.nn.mixers import routing

LARGE = 100e6
TOLERANCE = 3e-5
ROUTED = [name for name in golden.NAMES if "route_idx_stage0" in golden.Golden(name).arrays]


def _parameters() -> list:
    marked = []
    for name in golden.NAMES:
        large = golden.Golden(name).info["num_params"] > LARGE
        marked.append(pytest.param(name, marks=[pytest.mark.slow] if large else []))
    return marked


def load(record: golden.Golden) -> torch.nn.Module:
    info = record.info
    model = zoo.create_model(info["variant"], checkpoint=record.state_dict(), **info.get("options", {})).eval()
    assert sum(p.numel() for p in model.parameters()) == info["num_params"]
    assert model.num_classes == info["num_classes"]
    return model


def assert_map(found: torch.Tensor, record: golden.Golden, name: str) -> None:
    """A map (B, C, H, W) against the recorded shape, statistics and corner; of part of the batch against the corner."""
    batch, *shape = record.arrays[f"{name}_shape"]
    assert tuple(found.shape[1:]) == tuple(shape)
    values = {"corner": found[:, :4, :2, :2]}
    if len(found) == batch:
        values |= {"mean": found.mean(dim=(0, 2, 3))[:64], "std": found.std(dim=(0, 2, 3), unbiased=False)[:64]}
    for what, value in values.items():
        expected = torch.from_numpy(record.arrays[f"{name}_{what}"])
        expected = expected[: len(found)] if what == "corner" else expected
        assert (value - expected).abs().max() < 1e-4 * found.std(), (name, what)


@pytest.mark.parametrize("name", _parameters())
def test_published_weights_give_published_outputs(name: str) -> None:
    """Large variants see one of the two images, without statistics of maps over both."""
    record = golden.Golden(name)
    model, images = load(record), record.images()
    with torch.inference_mode():
        last, stages = model.forward_intermediates(images[:1] if record.info["num_params"] > LARGE else images)
        logits = model.forward_head(last)
    published = torch.from_numpy(record.arrays["logits"])[: len(logits)]
    difference = (logits[:, : published.shape[1]] - published).abs().max()
    assert difference < TOLERANCE * float(record.arrays["logits_std"])
    for i, stage in enumerate(stages):
        assert_map(stage, record, f"stage{i}")


@pytest.mark.parametrize("name", ROUTED)
def test_biformer_attends_what_the_published_code_attends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attention of each stage's last block, which drowns in the sum after it, and the first block's routes."""
    record, routes, branches = golden.Golden(name), [], []
    model = load(record)
    choose = routing.region_routes

    def remember(*arguments: object) -> torch.Tensor:
        routes.append(choose(*arguments))
        return routes[-1]

    monkeypatch.setattr(routing, "region_routes", remember)
    for stage in model.stages:
        stage.blocks[-1].attn.fn.register_forward_hook(lambda module, inputs, output: branches.append(output))
    with torch.inference_mode():
        model(record.images())
    for i, branch in enumerate(branches):
        assert_map(branch.permute(0, 3, 1, 2), record, f"attn{i}")
    depths = [len(stage.blocks) for stage in model.stages]
    for i in range(3):
        first = routes[sum(depths[:i])]
        assert torch.equal(first.sort(-1).values, torch.from_numpy(record.arrays[f"route_idx_stage{i}"]).long())


def test_every_published_variant_has_a_record() -> None:
    assert {golden.Golden(name).info["variant"] for name in golden.NAMES} == set(PUBLISHED)
