"""Phase `models`: whole models, ours against timm's and against our own in plain PyTorch; see `bench/models.py`."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from bench.models import from_timm, measure, own
from gpu.run import Run
from zoo.kernels import use_backend

PLAN = (
    ("eager", "forward", 12),
    ("eager", "training", 12),
    ("compiled", "forward", 60),
    ("graphed", "forward", 60),
    ("compiled", "training", 100),
)
"""Mode, pass, and the seconds that one model takes in it."""


class Plain(nn.Module):
    """A model whose attention runs in PyTorch's own operators, as in published code."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with use_backend("reference"):
            return self.model(images)


def time_models(run: Run, _: str) -> None:
    """A unit of work for each model, mode and pass."""
    for mode, kind, seconds in PLAN:
        for name in run.models:
            what = {"phase": "models", "operation": name, "case": f"{mode}, {kind}", "provider": "all"}
            run.unit(seconds, partial(_measure, run, name, mode, kind), **what)


def _measure(run: Run, name: str, mode: str, kind: str) -> None:
    factories = {"zoo": own, "timm": from_timm}
    if mode == "eager":
        factories["zoo, plain PyTorch"] = lambda name: Plain(own(name))
    rounds = 6 if run.device == "cuda" else 3
    for row in measure(factories, name, mode, kind, run.batch, run.size, "bfloat16", run.device, rounds):
        run.write("models", **row)
