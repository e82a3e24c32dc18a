"""Models made from models keep what was done to them, and models that no machine holds are not begun."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import zoo
from zoo.models.load import backbone_of

NAME = "maxvit_tiny_tf_224"
SMALL = {f"stages.{i}.depth": 1 for i in range(4)}


def prepared(**settings: object) -> nn.Module:
    """A model with every state that is not a weight."""
    model = zoo.create_model(NAME, drop_path_rate=0.3, drop_rate=0.2, exportable=True, **settings, **SMALL)
    zoo.freeze(model, 2)
    backbone_of(model).set_grad_checkpointing()
    next(reversed(list(model.parameters()))).requires_grad_(False)
    return model.to(torch.bfloat16)


@pytest.mark.parametrize("settings", [{"num_classes": 5}, {"features_only": True, "level_norm": True}])
@pytest.mark.parametrize("training", [True, False])
def test_resized_models_keep_everything_else(settings: dict, training: bool) -> None:
    model = prepared(**settings).train(training)
    larger = zoo.resize_positions(model, img_size=288)
    assert type(larger) is type(model)
    old, new = backbone_of(model), backbone_of(larger)
    assert (new.frozen, new.num_classes, new.head.drop.p) == (old.frozen, old.num_classes, 0.2)
    for (name, a), (_, b) in zip(model.named_parameters(), larger.named_parameters(), strict=True):
        assert (a.requires_grad, a.dtype, a.device) == (b.requires_grad, b.dtype, b.device), name
        assert name.endswith("pos_bias.table") != torch.equal(a, b) if a.shape == b.shape else "pos_bias" in name
    for (name, a), (_, b) in zip(model.named_modules(), larger.named_modules(), strict=True):
        for key in ("training", "rate", "p", "exportable", "grad_checkpointing"):
            assert getattr(a, key, None) == getattr(b, key, None), name
    assert new.pretrained_cfg == {**old.pretrained_cfg, "input_size": (3, 288, 288), "pool_size": (9, 9)}
    assert new.stages[0].blocks[0].wattn.fn.size == (9, 9)
    assert old.stages[0].blocks[0].wattn.fn.size == (7, 7)


@torch.inference_mode()
def test_a_resized_model_is_the_one_made_for_that_size() -> None:
    resized = zoo.resize_positions(zoo.create_model(NAME, **SMALL), img_size=288).eval()
    made = zoo.create_model(NAME, img_size=288, **SMALL).eval()
    made.load_state_dict(resized.state_dict())
    images = torch.randn(1, 3, 288, 288)
    assert torch.equal(made(images), resized(images))


class Parallel(nn.Module):
    """As DistributedDataParallel keeps its model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


WRAPPERS = {
    "none": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "parallel": lambda model: Parallel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("pyramid", [False, True])
def test_whatever_stands_around_a_model(wrapper: str, pyramid: bool) -> None:
    model = zoo.create_model(NAME, features_only=pyramid, **SMALL)
    wrapped = WRAPPERS[wrapper](model)
    zoo.freeze(wrapped, 1)
    grouped = {id(p) for group in zoo.parameter_groups(wrapped) for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}
    assert zoo.load_checkpoint(wrapped, model.state_dict()).loaded
    model.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in backbone_of(wrapped).stages)
    smaller = backbone_of(zoo.fuse(wrapped))
    assert not [m for m in smaller.stages[0].modules() if isinstance(m, nn.BatchNorm2d)]
    assert backbone_of(zoo.resize_positions(wrapped, img_size=288)).frozen == 1


LARGE = {
    "ratio": {"block.mlp.ratio": 1e6},
    "width": {"stages.3.dim": 65536},
    "depth": {f"stages.{i}.depth": 512 for i in range(4)},
    "window": {"block.attn.size": 65535},
    "kernel": {"stem.layers": [{"kernel": 65535, "stride": 4}]},
}


@pytest.mark.parametrize("kind", LARGE)
def test_models_that_no_machine_holds_are_refused_at_once(kind: str) -> None:
    start = time.process_time()
    with pytest.raises(zoo.ConfigError, match="expected at most"):
        zoo.create_model("nat_mini", **LARGE[kind])
    assert time.process_time() - start < 5
