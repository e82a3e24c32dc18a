"""Batch norms need more than one value per channel: a single image with a one-pixel map has no variance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.errors import ConfigError

TOO_FEW = "Expected more than 1 value per channel"
"""PyTorch's words."""


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """All batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def norms_explained() -> Iterator[None]:
    """Explain the error when a batch norm gets one value per channel."""
    try:
        yield
    except ValueError as error:
        if TOO_FEW not in str(error):
            raise
        raise ConfigError(
            "a batch norm of the model would see a single image on a map of one pixel, which has no variance: pass a "
            "batch_size and micro_batch that give every process two images or more at once and leave no single one "
            "over, a larger img_size, or, where that norm lies in a stage, --set freeze=STAGES"
        ) from error


@torch.no_grad()
def check_single_images(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Run one empty image (C, H, W) = `shape` through a model in training mode, leaving the model unchanged.

    Raises:
        ConfigError: if a batch norm cannot be trained with it.
    """
    if not batch_norms(model):
        return
    weight, training = next(model.parameters()), model.training
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    device = weight.device
    with norms_explained(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.train()(torch.zeros(1, *shape, device=device, dtype=weight.dtype))
    model.train(training)
    for name, buffer in model.named_buffers():
        buffer.copy_(before[name])
