"""How every family draws its weights: one rule for each kind of parameter, and no parameter without a rule."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from tests.conftest import PUBLISHED
from zoo.config.catalog import family_of
from zoo.nn.embeds import DeformConv2d

Rule = Callable[[torch.Tensor, nn.Module], None]


def assert_std(values: torch.Tensor, std: float) -> None:
    assert values.std().item() == pytest.approx(std, rel=8 / math.sqrt(values.numel()))
    assert abs(values.mean().item()) < 5 * std / math.sqrt(values.numel())


def normal(std: float) -> Rule:
    def rule(values: torch.Tensor, module: nn.Module) -> None:
        assert_std(values, std)
        assert values.numel() < 1000 or values.abs().max() > 2.5 * std  # a uniform distribution ends at 1.7 std

    return rule


def uniform(values: torch.Tensor, bound: float) -> None:
    assert values.abs().max() <= bound
    assert values.numel() < 1000 or values.abs().max() > 0.98 * bound
    assert_std(values, bound / math.sqrt(3))


def constant(value: float) -> Rule:
    def rule(values: torch.Tensor, module: nn.Module) -> None:
        assert (values == value).all()

    return rule


def pytorch(values: torch.Tensor, module: nn.Module) -> None:
    """PyTorch's own for linear layers and convolutions, kaiming_uniform(a=sqrt(5)): within 1 / sqrt(fan_in)."""
    uniform(values, 1 / math.sqrt(module.weight[0].numel()))


def xavier(values: torch.Tensor, module: nn.Module) -> None:
    uniform(values, math.sqrt(6 / sum(values.shape)))


def by_fan_out(values: torch.Tensor, module: nn.Module) -> None:
    kernel = values[0, 0].numel() * values.shape[0] // getattr(module, "groups", 1)
    normal(math.sqrt(2 / kernel))(values, module)


def nearly_zero(values: torch.Tensor, module: nn.Module) -> None:
    assert 0 < values.abs().max() < 1e-5


def temperature(values: torch.Tensor, module: nn.Module) -> None:
    torch.testing.assert_close(F.softplus(values), torch.full_like(values, 1 / 0.24))


# A parameter is called ".name:kind of its module"; the first pattern that matches holds.
NORMS = {"*.weight:norm": constant(1), "*.bias:norm": constant(0)}
LINEAR = {"*.weight:linear": normal(0.02), "*.bias:linear": constant(0)}
CONVS = {"*:conv": pytorch, "*:depthwise conv": pytorch}
NAT = {**NORMS, **LINEAR, "*:conv": pytorch, "*.pos_bias.table:": normal(0.02)}
RULES: dict[str, dict[str, Rule]] = {
    "davit": {**NORMS, **LINEAR, **CONVS},
    "maxvit": {  # timm's "vit_eff"
        **NORMS,
        ".head.*:linear": pytorch,
        "*.weight:*conv": by_fan_out,
        "*.bias:*conv": constant(0),
        "*.weight:linear": xavier,
        "*.fc?.bias:linear": nearly_zero,
        "*.bias:linear": constant(0),
        "*.pos_bias.table:": normal(0.02),
    },
    "nat": {**NAT, "*.gamma:": constant(1e-5)},
    "dinat": NAT,
    "dinat_s": NAT,
    "nat_isotropic": NAT,
    "biformer": {**NORMS, **LINEAR, **CONVS},
    "biformer_stl_nchw": {  # its linear layers are convolutions, except the classifier
        **NORMS,
        **CONVS,
        ".head.fc.weight:linear": normal(0.02),
        ".head.fc.bias:linear": constant(0),
        "*:linear": pytorch,
    },
    "crossformer": {**NORMS, **LINEAR, **CONVS},
    "litv2": {
        **NORMS,
        **LINEAR,
        "*.embed.offset.*:conv": constant(0),
        "*.mlp.fn.dwconv.weight:depthwise conv": normal(math.sqrt(2 / 9)),
        "*.mlp.fn.dwconv.bias:depthwise conv": constant(0),
        "*:conv": pytorch,
    },
    "transnext": {
        **NORMS,
        **LINEAR,
        "*.weight:*conv": by_fan_out,
        "*.bias:*conv": constant(0),
        "*.query.embedding:": normal(0.02),
        "*.query.temperature:": temperature,
        "*.tokens:": normal(0.02),
        "*.token_bias:": constant(0),
        "*.local_bias:": normal(0.0004),
    },
}
DRAWN = {
    "davit": ["davit_tiny"],
    "maxvit": ["maxvit_nano_rw_256", "maxvit_tiny_tf_224"],
    "nat": ["nat_mini", "nat_small"],
    "dinat": ["dinat_mini"],
    "dinat_s": ["dinat_s_tiny"],
    "nat_isotropic": ["nat_isotropic_small", "vitrpb_small"],
    "biformer": ["biformer_tiny", "biformer_stl"],
    "biformer_stl_nchw": ["biformer_stl_nchw"],
    "crossformer": ["crossformer_tiny", "crossformer_pp_small"],
    "litv2": ["litv2_s"],
    "transnext": ["transnext_micro", "transnext_micro_AAAA_256"],
}


POINTWISE = ("*.conv1", "*.conv3", "*.se.fc?", "*.shortcut.proj", "*.sr")
"""Linear layers that are 1x1 convolutions in the published code."""


def kind(prefix: str, module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d | DeformConv2d):
        return "conv" if getattr(module, "groups", 1) == 1 else "depthwise conv"
    if isinstance(module, nn.Linear):
        return "1x1 conv" if any(fnmatch.fnmatchcase(prefix, name) for name in POINTWISE) else "linear"
    return "norm" if isinstance(module, nn.LayerNorm | nn.BatchNorm2d) else ""


@pytest.mark.parametrize("group", RULES)
def test_every_parameter_is_drawn_by_the_published_rule(group: str) -> None:
    used = set()
    for name in DRAWN[group]:
        model = zoo.create_model(name, **{"stages.2.depth": 3, "stages.3.depth": 1})
        for prefix, module in model.named_modules():
            for suffix, values in module.named_parameters(recurse=False):
                key = f".{prefix}.{suffix}:{kind(prefix, module)}"
                pattern = next(pattern for pattern in RULES[group] if fnmatch.fnmatchcase(key, pattern))
                used.add(pattern)
                RULES[group][pattern](values.detach(), module)
    assert used == set(RULES[group])


def test_every_family_has_its_rules() -> None:
    families = {family_of(name) for name in PUBLISHED}
    assert families == set(RULES) - {"biformer_stl_nchw"} == {family_of(n) for names in DRAWN.values() for n in names}


def test_layer_scale_is_where_it_was_published() -> None:
    for name in zoo.list_models("maxvit_rmlp*"):
        model = zoo.create_model(name)
        gammas = [p for n, p in model.named_parameters() if n.endswith("gamma")]
        blocks = sum(len(stage.blocks) for stage in model.stages)
        assert len(gammas) == (4 * blocks if name == "maxvit_rmlp_small_rw_224" else 0)
        assert all((gamma == 1e-6).all() for gamma in gammas)
