"""Compares the outputs and speed of an exported model with those of the original."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from zoo.export.export import Exported, Named
from zoo.export.runtimes import FORMATS, Run


@dataclass(frozen=True)
class Deployment:
    """An exported model compared with the original in eager mode, on the device of its weights.

    Attributes:
        differences: the largest difference of any output, in units of its standard deviation, by (height, width).
        milliseconds: median time of one image at the export size, in the runtime and in eager mode.
    """

    differences: dict[tuple[int, int], float]
    milliseconds: tuple[float, float]


@torch.no_grad()
def deployment(model: nn.Module, exported: Exported, runs: int = 10) -> Deployment:
    """Compare an exported file with its model at the export size and, if sizes are dynamic, at a larger one.

    Args:
        model: the exported model, in evaluation mode.
        runs: number of runs for the median time.
    """
    run, eager = FORMATS[exported.format].read(exported.path), Named(model)
    height, width = exported.size
    sizes = [(height, width), (height + 37, width + 64)] if exported.least else [(height, width)]
    parameter = next(model.parameters())
    noise = torch.Generator().manual_seed(0)
    differences = {}
    for size in reversed(sizes):
        images = torch.randn(1, exported.channels, *size, generator=noise).to(parameter)
        differences[size] = _difference(run(images), eager(images))
    return Deployment(differences, (_median(run, images, runs), _median(eager, images, runs)))


def _difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    pairs = ((found[name].to(value.device), value) for name, value in expected.items())
    return max(float((a - b).abs().max() / b.std()) for a, b in pairs)


def _median(run: Run | Callable, images: torch.Tensor, runs: int) -> float:
    """Milliseconds per call, after two warm-up calls. The outputs are read, which waits for the GPU."""
    times = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        for value in run(images).values():
            value.flatten()[:1].cpu()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])
