"""Compares the outputs and speed of an exported model with those of the original."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Agreement:
    """How close an exported file is to its model on given images.

    Attributes:
        images: their number.
        error: largest relative error of any output: the norm of the differences divided by that of the outputs.
        top1: share of the images of which both find the same class likeliest, 0 to 1; None without logits.
    """

    images: int
    error: float
    top1: float | None


@torch.no_grad()
def agreement(model: nn.Module, exported: Exported, images: Sequence[torch.Tensor]) -> Agreement:
    """Compare an exported file with its model on images; for int8 take others than those of the calibration.

    Args:
        model: the exported model, in evaluation mode.
        images: (B, C, H, W) each, normalised as the weights require.
    """
    run, eager = FORMATS[exported.format].read(exported.path), Named(model)
    parameter = next(model.parameters())
    off, norm, equal = dict.fromkeys(exported.outputs, 0.0), dict.fromkeys(exported.outputs, 0.0), 0
    for batch in images:
        found, expected = run(batch.to(parameter)), eager(batch.to(parameter))
        for name, value in expected.items():
            value = value.double().cpu()
            off[name] += float((found[name].cpu() - value).square().sum())
            norm[name] += float(value.square().sum())
            equal += int((found[name].cpu().argmax(1) == value.argmax(1)).sum()) if name == "logits" else 0
    count = sum(map(len, images))
    error = max((off[name] / norm[name]) ** 0.5 for name in off)
    return Agreement(count, error, equal / count if "logits" in off else None)


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
