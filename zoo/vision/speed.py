"""How fast a model is on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

SECONDS = 2.0
"""Seconds for which a call is repeated; the median is used."""


@dataclass(frozen=True)
class Speed:
    """The speed of one model on batches of one size.

    Attributes:
        batch, height, width: of the images.
        forward, training: images per second, `training` for forward and backward pass; None if it was not requested.
        gigabytes: peak GPU memory; None on a CPU.
    """

    batch: int
    height: int
    width: int
    forward: float
    training: float | None
    gigabytes: float | None


def measure_speed(
    model: nn.Module, batch: int, size: tuple[int, int], training: bool = False, amp: torch.dtype | None = None
) -> Speed:
    """Time a model on random images, on the device of its weights.

    Args:
        model: maps images (B, 3, H, W) to a tensor.
        batch: images at once.
        size: (height, width) in pixels.
        training: also time forward and backward pass, in training mode.
        amp: autocast precision; None for the precision of the weights.
    """
    device = next(chain(model.parameters(), model.buffers())).device
    images = torch.randn(batch, 3, *size, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def infer() -> None:
        with torch.inference_mode(), torch.autocast(device.type, amp, enabled=amp is not None):
            model(images)

    def step() -> None:
        with torch.autocast(device.type, amp, enabled=amp is not None):
            loss = model(images).float().square().mean()
        loss.backward()
        model.zero_grad()

    mode = model.training
    model.eval()
    forward = batch / _median(infer)
    model.train()
    trained = batch / _median(step) if training else None
    model.train(mode)
    used = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return Speed(batch, *size, forward, trained, used)


def _median(call: Callable[[], None]) -> float:
    """Seconds per call, after one warm-up call."""
    from torch.utils.benchmark import Timer  # importing it warns about a CUDA toolkit without a GPU

    call()
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=SECONDS).median
