"""Training-mode facts of each family: stochastic depth, weight decay, learning rates, dropout, batch norm, gradients.

How weights are drawn is in `test_initialisation.py`.
"""

from __future__ import annotations

import pytest
import torch
from timm.optim import param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

import zoo
from tests import golden
from tests.conftest import SMALLEST
from zoo.config.catalog import load_config
from zoo.nn.backbone import Backbone
from zoo.nn.layers.drop_path import DropPath
from zoo.nn.layers.position_bias import MlpBias

NEVER_DROPPED = {"cpe", "cpe1", "cpe2", "cool"}


def empty(name: str, **options: float) -> Backbone:
    """The variant without weights."""
    with torch.device("meta"):
        return Backbone(load_config(name), **options)


def assert_rises_linearly(model: Backbone, last: float) -> None:
    blocks = [block for stage in model.stages for block in stage.blocks]
    for i, block in enumerate(blocks):
        rates = {name: branch.drop_path.rate for name, branch in block.named_children()}
        expected = last * i / (len(blocks) - 1)
        assert rates == {name: pytest.approx(0 if name in NEVER_DROPPED else expected) for name in rates}


def test_stochastic_depth_rises_linearly_over_all_blocks(small: str) -> None:
    assert_rises_linearly(empty(small, drop_path_rate=0.3), 0.3)


def test_drop_path_keeps_the_mean_and_drops_whole_samples() -> None:
    layer = DropPath(0.25).train()
    out = layer(torch.ones(4000, 2, 2, 3))
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert all(len(sample.unique()) == 1 for sample in out[:50])
    assert torch.equal(layer.eval()(out), out)


@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_parameter_groups(small: str, layer_decay: float | None) -> None:
    model = empty(small)
    groups = zoo.parameter_groups(model, 0.05, layer_decay)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.AdamW(groups, lr=1e-3).step()
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(map(id, model.parameters()))
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim <= 1 or name.endswith(".bias") or name in model.no_weight_decay()
        assert decay[id(parameter)] == (0 if spared else 0.05), name


def learning_rates(model: Backbone, groups: list[dict], key: str = "lr_scale") -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group[key] for group in groups for parameter in group["params"]}


def test_litv2_slows_the_offset_weights_down() -> None:
    """By 0.01, as published, and not the biases of those convolutions."""
    model = empty("litv2_s")
    offsets = {f"stages.{s}.embed.offset.weight" for s in (1, 2, 3)}
    scales = learning_rates(model, zoo.parameter_groups(model))
    assert scales == {name: 0.01 if name in offsets else 1.0 for name in scales}
    layers = learning_rates(model, param_groups_layer_decay(model, layer_decay=0.7))
    both = learning_rates(model, zoo.parameter_groups(model, layer_decay=0.7))
    assert both == {name: pytest.approx(layers[name] * scales[name]) for name in layers}
    assert len(set(layers.values())) > 10
    optimiser = torch.optim.AdamW(zoo.parameter_groups(model), lr=1.0)
    CosineLRScheduler(optimiser, t_initial=10).step(5)
    rates = learning_rates(model, optimiser.param_groups, "lr")
    assert rates == {name: pytest.approx(0.5 * scales[name]) for name in scales}


@pytest.mark.parametrize("family", sorted(set(SMALLEST) - {"litv2"}))
def test_no_other_family_has_learning_rates_of_its_own(family: str) -> None:
    model = empty(SMALLEST[family])
    assert set(learning_rates(model, zoo.parameter_groups(model)).values()) == {1.0}


def test_dropout_places() -> None:
    bias = MlpBias(2)
    like = torch.empty(0)
    assert torch.equal(bias.eval()((4, 4), like), bias((4, 4), like))
    assert not torch.equal(bias.train()((4, 4), like), bias((4, 4), like))
    model = zoo.create_model("davit_tiny", drop_rate=0.5).train()
    assert model.head.drop.p == 0.5
    features = torch.randn(1, 768, 4, 4)
    assert not torch.equal(model.forward_head(features), model.forward_head(features))


@pytest.mark.parametrize("family", ["biformer", "litv2", "maxvit"])
def test_batch_norm_statistics_move_as_torchs(family: str) -> None:
    model = zoo.create_model(SMALLEST[family], num_classes=2).train()
    norms = {ours: nn.BatchNorm2d(ours.num_features) for ours in model.modules() if isinstance(ours, nn.BatchNorm2d)}
    assert len(norms) >= 3

    def follow(ours: nn.Module, args: tuple[torch.Tensor]) -> None:
        norms[ours](args[0])

    for ours, theirs in norms.items():
        assert (ours.eps, ours.momentum) == (1e-5, 0.1) == (theirs.eps, theirs.momentum)
        ours.register_forward_pre_hook(follow)
    model(golden.images(2, 64, 64))
    for ours, theirs in norms.items():
        for key, statistic in theirs.named_buffers():
            torch.testing.assert_close(ours.get_buffer(key), statistic)
        assert ours.num_batches_tracked == 1
        assert (ours.running_var != 1).all()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_backward_gives_every_parameter_a_finite_gradient(small: str, mode: str) -> None:
    """And none but a vector's is zero: some biases cancel, as those before a batch norm."""
    model = getattr(zoo.create_model(small, num_classes=5, drop_path_rate=0.0), mode)()
    model(golden.images(2, 97, 131)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.ndim == 1 or parameter.grad.any(), name


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
