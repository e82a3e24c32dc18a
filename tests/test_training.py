"""Training-mode facts of each family: stochastic depth, weight decay, learning rates, dropout, batch norm, gradients.

How weights are drawn is in `test_initialisation.py`.
"""

from __future__ import annotations

import fnmatch
import re

import pytest
import torch
from timm.optim import param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

import zoo
from tests import golden
from tests.conftest import PUBLISHED, SMALLEST
from zoo.config.catalog import load_config
from zoo.nn.backbone import Backbone
from zoo.nn.layers.drop_path import DropPath
from zoo.nn.layers.position_bias import MlpBias

RATES = {  # of stochastic depth, and who trained with it
    0.0: "maxvit_*",
    0.1: "davit_tiny davit_small davit_base nat_isotropic_small dinat_isotropic_small vitrpb_small biformer_tiny "
    "biformer_base biformer_stl biformer_stl_nchw crossformer_tiny",
    0.15: "biformer_small transnext_micro transnext_micro_AAAA_256",
    0.2: "nat_mini nat_tiny dinat_mini dinat_tiny dinat_s_tiny crossformer_small crossformer_pp_small litv2_s "
    "litv2_s_alpha0_0 litv2_s_alpha0_2 litv2_s_alpha0_4 litv2_s_alpha0_5 litv2_s_alpha0_7 litv2_s_alpha0_9 "
    "litv2_s_alpha1_0",
    0.25: "transnext_tiny",
    0.3: "nat_small dinat_small dinat_s_small crossformer_base crossformer_pp_base litv2_m",
    0.35: "dinat_large dinat_large_384 dinat_large_384_11x11 dinat_s_large dinat_s_large_384",
    0.4: "nat_isotropic_base dinat_isotropic_base vitrpb_base",
    0.45: "transnext_small",
    0.5: "nat_base dinat_base dinat_s_base crossformer_large crossformer_pp_large crossformer_pp_huge litv2_b "
    "litv2_b_384",
    0.6: "transnext_base",
    0.7: "transnext_small_384",
    0.8: "transnext_base_384",
}
NEVER_DROPPED = {"cpe", "cpe1", "cpe2", "cool"}
UNDECAYED = {  # patterns of the names that a family's recipe keeps from weight decay, besides vectors
    **dict.fromkeys(["nat", "dinat", "dinat_s", "nat_isotropic"], r"\.attn\.fn\.pos_bias\.table$"),
    "maxvit": r"\.pos_bias\.",
    "transnext": r"\.fn\.(query\.embedding|query\.temperature|local_bias|cpb\.fc[12]\.(weight|bias))$",
    **dict.fromkeys(["davit", "biformer", "crossformer", "litv2"], None),
}


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


@pytest.mark.parametrize("name", PUBLISHED)
def test_stochastic_depth_is_the_published_one(name: str) -> None:
    (rate,) = (rate for rate, names in RATES.items() if any(fnmatch.fnmatchcase(name, n) for n in names.split()))
    assert load_config(name).drop_path_rate == rate


def test_stochastic_depth_rises_linearly_over_all_blocks(small: str) -> None:
    assert_rises_linearly(empty(small, drop_path_rate=0.3), 0.3)


def test_drop_path_keeps_the_mean_and_drops_whole_samples() -> None:
    layer = DropPath(0.25).train()
    out = layer(torch.ones(4000, 2, 2, 3))
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert all(len(sample.unique()) == 1 for sample in out[:50])
    assert torch.equal(layer.eval()(out), out)


@pytest.mark.parametrize("family", UNDECAYED)
def test_no_weight_decay_names(family: str) -> None:
    pattern = UNDECAYED[family]
    model = empty(SMALLEST[family])
    expected = {n for n, _ in model.named_parameters() if pattern and re.search(pattern, n)}
    assert model.no_weight_decay() == expected
    assert bool(expected) == (pattern is not None)


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
