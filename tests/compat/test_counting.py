"""Tools that count operations and parameters, or draw what runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.tensorboard import SummaryWriter

from tests.compat.conftest import IMAGES

ONE = IMAGES[:1]


@pytest.fixture
def operations(model: nn.Module) -> float:
    """Multiply-adds of one image, attention included."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ONE)
    return counter.get_total_flops() / 2


def test_thop(model: nn.Module, operations: float) -> None:
    from thop import profile

    assert 0.8 < profile(model, (ONE,), verbose=False)[0] / operations < 1.02  # attention is no layer that it knows


@pytest.mark.parametrize("backend", ["pytorch", "aten"])
def test_ptflops(model: nn.Module, operations: float, backend: str) -> None:
    from ptflops import get_model_complexity_info

    settings = {"as_strings": False, "print_per_layer_stat": False, "verbose": False}
    counted, _ = get_model_complexity_info(model, tuple(ONE.shape[1:]), backend=backend, **settings)
    assert 0.8 < counted / operations < 1.05


def test_fvcore(model: nn.Module, operations: float) -> None:
    from fvcore.nn import FlopCountAnalysis

    counted = FlopCountAnalysis(model, ONE).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert 0.8 < counted.total() / operations < 1.05


def test_torchinfo(model: nn.Module) -> None:
    """It counts the positions of a map as 1 in linear layers, of any model's."""
    from torchinfo import summary

    seen = summary(model, input_data=ONE, verbose=0)
    assert seen.total_params == sum(p.numel() for p in model.parameters())
    assert len(seen.summary_list) > 50


def test_tensorboard_draws_the_graph(model: nn.Module, tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_graph(model, ONE)
    graph = EventAccumulator(str(tmp_path)).Reload().Graph()
    assert any("Backbone/Stage[3]/" in node.name for node in graph.node)
