"""The tree of modules is what it says: plain layers, each called, whose inputs and outputs belong to who watches."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import zoo
from tests import golden
from zoo.nn.layers import cpu
from zoo.nn.layers.position_bias import DynamicBias, MlpBias, PooledBias

IMAGES = golden.images(2, 64, 96)
PLAIN = {nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d}


@pytest.fixture
def model(small: str) -> nn.Module:
    model = zoo.create_model(small, num_classes=5, drop_path_rate=0.0).eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.running_mean, -1, 1)
    return model


def run(model: nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-4 * b.std())


def test_layers_are_of_the_types_that_tools_look_for() -> None:
    with torch.device("meta"):
        for name in zoo.list_models():
            kinds = {type(module) for module in zoo.create_model(name).modules()}
            assert {kind for kind in kinds if issubclass(kind, tuple(PLAIN))} <= PLAIN, name


def test_every_module_is_called_and_its_output_stays_as_it_was(model: nn.Module) -> None:
    expected, kept = run(model), {}

    def keep(name: str) -> None:
        def hook(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            kept[name] = [(t, t.clone()) for t in (*inputs, output) if isinstance(t, torch.Tensor)]

        return hook

    modules = {name: m for name, m in model.named_modules() if not isinstance(m, nn.ModuleList)}
    for name, module in modules.items():
        module.register_forward_hook(keep(name))
    assert close(run(model), expected)
    assert modules.keys() - kept.keys() == set()
    changed = [name for name, pairs in kept.items() if not all(torch.equal(now, then) for now, then in pairs)]
    assert changed == []


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm])
def test_what_a_hook_or_another_forward_changes_counts(model: nn.Module, kind: type[nn.Module]) -> None:
    layers = [module for module in model.modules() if type(module) is kind]
    expected = run(model)
    handles = [layer.register_forward_hook(lambda module, inputs, output: output.relu()) for layer in layers]
    hooked = run(model)
    assert not layers or not close(hooked, expected)
    for layer, handle in zip(layers, handles, strict=True):
        handle.remove()
        layer.forward = lambda *args, own=layer.forward: own(*args).relu()  # as accelerate and others do
    assert close(run(model), hooked)
    for layer in layers:
        del layer.forward
    assert close(run(model), expected)


def test_shortcuts_give_what_the_layers_give(model: nn.Module) -> None:
    for images in (IMAGES, golden.images(1, 97, 131), golden.images(3, 64, 64)):
        assert close(run(model, images), model(images).detach())


def test_shortcuts_are_taken_and_stepped_back_from(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = nn.Linear(8, 8), torch.randn(2, 4, 4, 8)
    with torch.no_grad():
        assert cpu.bare(x, linear)
        with FlopCounterMode(display=False):
            assert not cpu.bare(x, linear)
        with torch.device("cpu"):
            assert not cpu.bare(x, linear)
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        assert not cpu.bare(x, linear)
        handle.remove()
        assert not torch.func.vmap(lambda image: torch.tensor(cpu.bare(image, linear)))(x).any()
        nn.utils.parametrizations.spectral_norm(watched := nn.Linear(8, 8))
        assert not cpu.bare(x, watched)
        replaced = {"weight": torch.zeros(8, 8), "bias": torch.zeros(8)}
        assert not torch.func.functional_call(linear, replaced, (x,)).any()
        assert cpu.bare(x, linear)
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
        assert not cpu.bare(x, linear)
    assert not cpu.bare(x, nn.Linear(8, 8))


REPLACED = {
    "sequence": lambda layer: nn.Sequential(layer, nn.Identity()),
    "subclass": lambda layer: type("Own", (type(layer),), {})(*_arguments(layer)),
    "unmoved": lambda layer: nn.Identity() if isinstance(layer, nn.BatchNorm2d) else layer,
    "no scale": lambda layer: (
        nn.BatchNorm2d(layer.num_features, affine=False).eval() if isinstance(layer, nn.BatchNorm2d) else layer
    ),
}


def _arguments(layer: nn.Module) -> tuple:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, nn.Conv2d):
        return (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
                layer.dilation, layer.groups)  # fmt: skip
    return (layer.num_features,)


@pytest.mark.parametrize("replacement", REPLACED)
def test_layers_may_be_replaced(model: nn.Module, replacement: str) -> None:
    """With and without gradients the model is the same, whatever stands in a layer's place."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) in (nn.Linear, nn.Conv2d, nn.BatchNorm2d) and not name.isdecimal():
                setattr(parent, name, REPLACED[replacement](layer).eval())
    assert close(run(model), model(IMAGES).detach())


def test_settings_of_layers_count(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and max(module.padding) > 0:
            module.padding_mode = "replicate"
            module._reversed_padding_repeated_twice = [n for n in reversed(module.padding) for _ in range(2)]
        if hasattr(module, "act"):
            module.act = F.relu
    assert close(run(model), model(IMAGES).detach())


@pytest.mark.parametrize("network", [DynamicBias(2, 16), MlpBias(2), PooledBias(2, (7, 7), None)])
def test_kept_tables_follow_the_weights_and_who_changes_the_layers(network: nn.Module) -> None:
    like = torch.empty(0)
    sizes = ((4, 6), (2, 3), like, (2, 3)) if isinstance(network, PooledBias) else ((3, 4), like)
    network.eval()
    with torch.no_grad():
        first = network(*sizes)
        assert torch.equal(network(*sizes), first)
        assert not any(torch.is_tensor(value) for value in vars(network).values())
        parameter = next(network.parameters())
        parameter.data = parameter.data * 2
        changed = network(*sizes)
        assert not torch.equal(changed, first)
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        handle = last.register_forward_hook(lambda module, inputs, output: output + 1)
        torch.testing.assert_close(network(*sizes), changed + 1)
        handle.remove()
        assert torch.equal(network(*sizes), changed)


def test_use_leaves_nothing_in_a_pickle(model: nn.Module) -> None:
    before = len(pickle.dumps(model))
    run(model)
    assert len(pickle.dumps(model)) == before
    assert close(run(copy.deepcopy(model)), run(model))


def test_a_mode_leaves_nothing_behind(small: str) -> None:
    """Tables of a size seen under a mode for the first time are not kept for those who come after."""
    model = zoo.create_model(small, num_classes=5).eval()
    images = golden.images(1, 76, 108)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        model(mode.from_tensor(images))
    with torch.inference_mode():
        model(images)
    assert close(model(images).detach(), run(model, images))


def test_stages_hand_out_nchw(model: nn.Module) -> None:
    shapes = []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[1]))
    run(model)
    assert shapes == [level["num_chs"] for level in model.feature_info]


def test_parts_of_a_model(model: nn.Module) -> None:
    with pytest.raises(NotImplementedError, match="forward_features"):
        nn.Sequential(*list(model.children())[:-1])(IMAGES)
    expected = model.forward_features(IMAGES)
    model.head = nn.Identity()
    assert torch.equal(model(IMAGES), expected)
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(expected.shape[1], 3))
    assert model(IMAGES).shape == (2, 3)


@pytest.mark.parametrize("wrapper", ["hook", "list", "dict", "fx"])
def test_other_feature_wrappers_of_timm_say_what_to_use(wrapper: str) -> None:
    with pytest.raises(zoo.ConfigError, match="features_only=True"):
        zoo.create_model("davit_tiny", features_only=True, feature_cls=wrapper)


def test_tracing_by_default(each_part: nn.Module) -> None:
    with torch.no_grad():
        traced = torch.jit.trace(each_part, IMAGES)
        assert close(traced(IMAGES), each_part(IMAGES))
        other = golden.images(2, 64, 96, 1)
        assert close(traced(other), each_part(other))


def test_per_sample_gradients_by_vmap_are_those_of_each_sample(small: str) -> None:
    model = zoo.create_model(small, num_classes=5, drop_path_rate=0.0).eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    labels = torch.tensor([0, 1])

    def loss(parameters: dict, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(model, parameters, (image[None],)), label[None])

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, IMAGES, labels)
    for i in range(2):
        model.zero_grad()
        F.cross_entropy(model(IMAGES[i : i + 1]), labels[i : i + 1]).backward()
        scale = max(p.grad.abs().max() for p in model.parameters())
        for name, p in model.named_parameters():
            assert (found[name][i] - p.grad).abs().max() < 1e-3 * (p.grad.abs().max() + 1e-2 * scale), name
