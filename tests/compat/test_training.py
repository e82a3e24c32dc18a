"""Tools of training: averages of weights, offloading, sharding, privacy."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed
from accelerate import cpu_offload
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, update_bn

from tests.compat.conftest import IMAGES, LABELS, distance, run

TORCHS = {kind for kind in vars(nn).values() if isinstance(kind, type)}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("store") / "file"
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_averages_of_weights(model: nn.Module) -> None:
    before = run(model)
    averaged, ema = AveragedModel(model), ModelEmaV3(model, decay=0.5)
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    averaged.update_parameters(model)
    ema.update(model)
    update_bn([IMAGES], averaged)
    assert run(averaged.eval()).isfinite().all()
    assert distance(run(ema.module.eval()), before) > 1e-4
    assert not torch.equal(run(ema.module), run(model))


def test_weights_wait_elsewhere(model: nn.Module) -> None:
    before = run(model)
    assert distance(run(cpu_offload(model, torch.device("cpu"))), before) < 1e-4


def test_every_layer_is_sharded(model: nn.Module, one_process: None) -> None:
    mesh, whole = init_device_mesh("cpu", (1,)), copy.deepcopy(model)
    for layer in [module for module in model.modules() if type(module) in (nn.Linear, nn.Conv2d, nn.LayerNorm)]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    F.cross_entropy(model(IMAGES), LABELS).backward()
    F.cross_entropy(whole(IMAGES), LABELS).backward()
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad, rtol=1e-3, atol=1e-4)
    assert distance(run(model), run(whole)) < 1e-4


def test_opacus_gives_the_gradient_of_each_image(model: nn.Module) -> None:
    """Of torch.nn's layers of maps: tables and networks of position have no images to tell apart, and stay frozen."""
    from opacus import GradSampleModule
    from opacus.validators import ModuleValidator

    model = ModuleValidator.fix(model.train())  # group norms for batch norms; it sees layers in training alone
    for name, module in model.named_modules():
        of_positions = bool({"pos_bias", "cpb"} & set(name.split(".")))
        module.training = not of_positions
        if of_positions or type(module) not in TORCHS:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) > 0.85 * sum(p.numel() for p in model.parameters())
    watched = GradSampleModule(model)
    F.cross_entropy(watched(IMAGES), LABELS).backward()
    watched.disable_hooks()
    for i in range(2):
        loss = F.cross_entropy(model(IMAGES[i : i + 1]), LABELS[i : i + 1])
        exact = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
        scale = max(gradient.abs().max() for gradient in exact.values())
        for name, gradient in exact.items():
            assert (trained[name].grad_sample[i] - gradient).abs().max() < 1e-3 * (gradient.abs().max() + scale), name
