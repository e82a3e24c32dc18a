"""Tools that put something in the place of layers or of their weights: adapters, quantisation, pruning."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.ao.nn.quantized import dynamic
from torch.nn import functional as F
from torch.nn.utils import prune

from tests.compat.conftest import IMAGES, LABELS, distance, run
from zoo.nn.ffns import Mlp
from zoo.nn.layers.position_bias import PooledBias

WEIGHTED = (nn.Linear, nn.Conv2d)


def test_lora_trains_is_merged_and_switched_off(model: nn.Module) -> None:
    before = run(model)
    config = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["head.fc"])
    adapted = get_peft_model(model, config)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.05)
    for _ in range(2):
        F.cross_entropy(adapted(IMAGES), LABELS).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = run(adapted)
    assert distance(trained, before) > 1e-2
    with adapted.disable_adapter():
        assert distance(run(adapted), before) < 1e-4
    assert distance(run(adapted.merge_and_unload()), trained) < 1e-4


def test_lora_of_convolutions(model: nn.Module) -> None:
    names = [name for name, module in model.named_modules() if type(module) is nn.Conv2d and module.groups == 1]
    before = run(model)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=names, init_lora_weights=False))
    assert distance(run(adapted), before) > 1e-3
    with adapted.disable_adapter():
        assert distance(run(adapted), before) < 1e-4


def test_dynamic_quantisation_quantises_every_linear_layer(model: nn.Module) -> None:
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    count = sum(type(module) is nn.Linear for module in model.modules())
    assert count == sum(type(module) is dynamic.Linear for module in quantised.modules()) > 5
    assert 0 < distance(run(quantised), run(model)) < 0.5


def test_torchao_quantises_weights(model: nn.Module) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="not for every PyTorch that Python 3.10 has")
    before = run(model)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    assert 0 < distance(run(model), before) < 0.3


def test_weights_are_pruned(model: nn.Module) -> None:
    before = run(model)
    layers = [module for module in model.modules() if type(module) in WEIGHTED]
    for layer in layers:
        prune.l1_unstructured(layer, "weight", 0.3)
    pruned = run(model)
    assert distance(pruned, before) > 1e-3
    for layer in layers:
        prune.remove(layer, "weight")
    assert distance(run(model), pruned) < 1e-4


def test_channels_are_pruned(model: nn.Module) -> None:
    """By torch-pruning, in the last hidden layer that is not gated: it does not follow the halves of a gated one."""
    import torch_pruning

    hidden = [module for module in model.modules() if isinstance(module, Mlp | PooledBias)]
    network = [module for module in hidden if not getattr(module, "gated", False)][-1]
    width = network.fc1.out_features
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=IMAGES)
    group = graph.get_pruning_group(network.fc1, torch_pruning.prune_linear_out_channels, idxs=[0, 1])
    assert graph.check_pruning_group(group)
    group.prune()
    assert network.fc1.out_features == network.fc2.in_features == width - 2
    assert run(model).isfinite().all()
