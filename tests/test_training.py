"""Training-mode facts of each family: initialisation, stochastic depth, weight decay, dropout, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import zoo
from tests import golden
from tests.conftest import SMALLEST
from zoo.layers.drop_path import DropPath
from zoo.layers.linear import Pointwise
from zoo.layers.norm import BatchNorm
from zoo.layers.position_bias import MlpBias


@pytest.fixture(scope="module", params=["davit_tiny", "maxvit_nano_rw_256", "maxvit_tiny_tf_224"])
def drawn(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return zoo.create_model(request.param)


def assert_std(weight: torch.Tensor, std: float) -> None:
    assert weight.std().item() == pytest.approx(std, rel=8 / math.sqrt(weight.numel()))
    assert abs(weight.mean().item()) < 5 * std / math.sqrt(weight.numel())


def test_initialisation(drawn: nn.Module) -> None:
    """DaViT: linear layers normal of std 0.02. MaxViT: Xavier, convolutions normal by fan-out (timm's vit_eff)."""
    davit = drawn.config.family == "davit"
    for name, module in drawn.named_modules():
        if isinstance(module, nn.LayerNorm | BatchNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        elif davit and isinstance(module, nn.Linear):
            assert_std(module.weight, 0.02)
            assert (module.bias == 0).all()
        elif davit or name.startswith("head."):  # PyTorch's own: uniform within 1 / sqrt(fan_in)
            assert module.weight.abs().max() <= 1 / math.sqrt(module.weight[0].numel())
            assert_std(module.weight, 1 / math.sqrt(3 * module.weight[0].numel()))
        elif isinstance(module, nn.Conv2d | Pointwise):
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel() // getattr(module, "groups", 1)
            assert_std(module.weight, math.sqrt(2 / fan_out))
            assert module.bias is None or (module.bias == 0).all()
        else:
            assert_std(module.weight, math.sqrt(2 / sum(module.weight.shape)))
            in_mlp = name.endswith(("fc1", "fc2"))
            assert module.bias.abs().max() < (1e-5 if in_mlp else 1e-12)
            assert (module.bias.abs().max() > 0) == in_mlp


def test_position_tables_start_small() -> None:
    model = zoo.create_model("maxvit_tiny_tf_224")
    assert_std(model.stages[3].blocks[0].wattn.fn.pos_bias.table, 0.02)


@pytest.mark.parametrize(("name", "default"), [("davit_tiny", 0.1), ("maxvit_tiny_tf_224", 0.0)])
def test_stochastic_depth_rises_linearly_over_all_blocks(name: str, default: float) -> None:
    for rate in (None, 0.3):
        model = zoo.create_model(name, drop_path_rate=rate)
        blocks = [block for stage in model.stages for block in stage.blocks]
        for i, block in enumerate(blocks):
            expected = (default if rate is None else rate) * i / (len(blocks) - 1)
            rates = {branch: getattr(block, branch).drop_path.rate for branch, _ in block.named_children()}
            never = {"cpe1", "cpe2"}
            assert all(r == pytest.approx(0 if b in never else expected) for b, r in rates.items())


def test_drop_path_keeps_the_mean_and_drops_whole_samples() -> None:
    layer = DropPath(0.25).train()
    out = layer(torch.ones(4000, 2, 2, 3))
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert all(len(sample.unique()) == 1 for sample in out[:50])
    assert torch.equal(layer.eval()(out), out)


def test_no_weight_decay_names() -> None:
    assert zoo.create_model("davit_tiny").no_weight_decay() == set()
    for name in ("maxvit_tiny_tf_224", "maxvit_rmlp_pico_rw_256"):
        model = zoo.create_model(name)
        bias = {n for n, _ in model.named_parameters() if ".pos_bias." in n}
        assert model.no_weight_decay() == bias
        assert bias


def test_layer_scale_is_where_it_was_published() -> None:
    for name in zoo.list_models("maxvit_rmlp*"):
        model = zoo.create_model(name)
        gammas = [p for n, p in model.named_parameters() if n.endswith("gamma")]
        blocks = sum(len(stage.blocks) for stage in model.stages)
        assert len(gammas) == (4 * blocks if name == "maxvit_rmlp_small_rw_224" else 0)
        assert all((gamma == 1e-6).all() for gamma in gammas)


def test_dropout_places() -> None:
    bias = MlpBias(2, (4, 4))
    assert torch.equal(bias.eval()(), bias())
    assert not torch.equal(bias.train()(), bias())
    model = zoo.create_model("davit_tiny", drop_rate=0.5).train()
    assert model.head.drop.p == 0.5
    features = torch.randn(1, 768, 4, 4)
    assert not torch.equal(model.forward_head(features), model.forward_head(features))


def test_batch_norm_momentum_and_statistics() -> None:
    model = zoo.create_model(SMALLEST["maxvit"]).train()
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    assert {m.momentum for m in norms} == {0.1}
    before = norms[0].running_mean.clone()
    model(golden.images(2, 64, 64))
    assert not torch.equal(norms[0].running_mean, before)


def test_batch_norm_in_both_modes_is_torchs() -> None:
    ours, theirs = BatchNorm(6), nn.BatchNorm2d(6)
    x = torch.randn(3, 4, 5, 6)
    for mode in (True, False):
        out, expected = ours.train(mode)(x), theirs.train(mode)(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_backward_gives_every_parameter_a_finite_gradient(small: str, mode: str) -> None:
    model = getattr(zoo.create_model(small, num_classes=5), mode)()
    model(golden.images(2, 97, 131)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_a_few_steps_reduce_the_loss(small: str) -> None:
    model = zoo.create_model(small, num_classes=2, drop_path_rate=0.0).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4)
    images, labels = golden.images(4, 64, 64), torch.tensor([0, 1, 0, 1])
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.5 * losses[0]
