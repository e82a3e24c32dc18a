"""Stages that see more than the map of the one before: a toy of three sub-nets, from YAML, in everything models do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.nn.registry import BRANCHES, CONTEXTS

TOY = """
family: toy
img_size: 64
stem: {type: conv, layers: [{kernel: 7, stride: 4, norm: layernorm}]}
downsample: {type: conv, layers: [{kernel: 3, stride: 2, norm: layernorm}]}
block:
  mix: {type: toy_mixer, norm: layernorm, reads: [block, branch, view], writes: [view]}
  gate: {type: toy_gate, norm: layernorm, reads: [block]}
  mlp: {type: mlp, norm: layernorm, ratio: 2}
stages:
  - {dim: 16, depth: 1, branches: [gate, mlp]}
  - {dim: 24, depth: 2, branches: [mlp]}
  - {dim: 32, depth: 1, branches: [gate, mlp], level: false}
  - {dim: 40, depth: 2, after: 1, context: {type: toy_view, scale: 0.5}}
head: {order: norm_pool, norm: layernorm}
init: trunc_normal
"""
"""Two stages, an overview of the second of them that is no level, and one more after the second that looks at it."""


class ToyMixer(nn.Module):
    """Adds a view, the input of the block and that of the branch, and hands on another view."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: torch.Tensor, block: torch.Tensor, branch: torch.Tensor, view: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.proj(x + view + block - branch)
        return y, view + y


class ToyGate(nn.Module):
    """As GLNet's, multiplied by what came into the block."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        return self.proj(x) * block


class ToyView(nn.Module):
    """The map of the stage before, which is coarser, brought to the size and the width of the stage's own."""

    names = ("view",)

    def __init__(self, dim: int, widths: tuple[int, ...], *, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.proj = nn.Linear(widths[-1], dim)

    def forward(self, x: torch.Tensor, outputs: list) -> dict[str, torch.Tensor]:
        coarse, _ = outputs[-1]
        view = F.interpolate(self.proj(coarse).permute(0, 3, 1, 2), x.shape[1:3], mode="bilinear", align_corners=False)
        return {"view": self.scale * view.permute(0, 2, 3, 1)}


@pytest.fixture(autouse=True)
def _parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BRANCHES, "toy_mixer", ToyMixer)
    monkeypatch.setitem(BRANCHES, "toy_gate", ToyGate)
    monkeypatch.setitem(CONTEXTS, "toy_view", ToyView)


@pytest.fixture
def toy(tmp_path: Path) -> str:
    (tmp_path / "toy.yaml").write_text(TOY)
    return str(tmp_path / "toy.yaml")


def by_hand(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The last map of the toy, written out."""
    first, second, overview, last = model.stages
    trunk = second(first(x))
    coarse = overview(trunk).permute(0, 2, 3, 1)
    x = last.embed(trunk.permute(0, 2, 3, 1))
    view = last.context(x, [(coarse, {})])["view"]
    for block in last.blocks:
        start = x
        y, view = block.mix.fn(block.mix.norm(x), block=start, branch=x, view=view)
        x = x + y
        x = x + block.gate.fn(block.gate.norm(x), block=start)
        x = x + block.mlp.fn(block.mlp.norm(x))
    return model.norm(x).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
def test_what_is_read_and_written(toy: str, size: tuple[int, int]) -> None:
    model = zoo.create_model(toy, num_classes=5).eval()
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(model.forward_features(images), by_hand(model, images))


def test_the_pyramid_has_levels_alone(toy: str) -> None:
    model = zoo.create_model(toy, features_only=True, level_norm=True)
    assert model.feature_info.channels() == [16, 24, 40]
    assert model.feature_info.reduction() == [4, 8, 16]
    assert model.feature_info.module_name() == ["stages.0", "stages.1", "stages.3"]
    assert [tuple(level.shape[1:]) for level in model(torch.randn(1, 3, 64, 96))] == [
        (16, 16, 24),
        (24, 8, 12),
        (40, 4, 6),
    ]
    two = zoo.create_model(toy, features_only=True, out_indices=(0, 1))
    assert len(two.model.stages) == 2
    assert len(two(torch.randn(1, 3, 64, 64))) == 2
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[0, :32, :48], mask[1] = True, True
    assert [level.shape[0] for level in model.eval()(torch.randn(2, 3, 64, 64), mask=mask)] == [2, 2, 2]


def test_checkpoints_and_levels(toy: str) -> None:
    model = zoo.create_model(toy, num_classes=5)
    again = zoo.create_model(toy, checkpoint=model.state_dict())
    pyramid = zoo.create_model(toy, checkpoint=model.state_dict(), features_only=True, out_indices=(1,))
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(images), again.eval()(images))
    (level,) = pyramid.eval()(images)
    assert torch.equal(level, model.forward_intermediates(images, indices=[1], intermediates_only=True)[0])


def test_training_recomputes_the_same(toy: str) -> None:
    model, images = zoo.create_model(toy, num_classes=5), torch.randn(2, 3, 64, 64)
    gradients = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        assert kept.abs().sum() > 0
        torch.testing.assert_close(kept, recomputed)


def test_compiled_exported_traced(toy: str) -> None:
    model = zoo.create_model(toy, num_classes=5, exportable=True).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(images)
        compiled = torch.compile(model, fullgraph=True, backend="eager")(images)
        exported = torch.export.export(model, (images,)).module()(images)
        traced = torch.jit.trace(model, images, check_trace=False)(images)
    for found in (compiled, exported, traced):
        torch.testing.assert_close(found, expected)


def test_it_is_looked_at(toy: str) -> None:
    from PIL import Image

    from zoo.explain import receptive_field

    field = receptive_field(zoo.create_model(toy), Image.new("RGB", (64, 64)), stage=2)
    assert field.gradient.shape == (64, 64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stages.3.after": 3}, "a stage before this one"),
        ({"stages.3.after": 7}, "a stage before this one"),
        ({"stages.3.level": False}, "true for the last stage"),
        ({"block.gate.reads": ["vista"]}, "vista"),
        ({"stages.3.context": None}, "view"),
        ({"block.mix.writes": ["block"]}, "writes"),
        ({"output_stride": 8}, "a graph of stages"),
    ],
)
def test_what_does_not_fit_is_refused(toy: str, change: dict, words: str) -> None:
    with pytest.raises(zoo.ConfigError, match=words):
        zoo.create_model(toy, overrides=change)
