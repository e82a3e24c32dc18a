"""Models sharded over processes (FSDP2, https://arxiv.org/abs/2304.11277)."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from zoo.errors import ConfigError
from zoo.nn.block import Block


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Share the parameters of a model among processes, block by block.

    Raises:
        ConfigError: if this PyTorch sums gradients instead of averaging them, as 2.7 does without NCCL.
    """
    if not _gradients_are_means(mesh):
        raise ConfigError(
            f"PyTorch {torch.__version__} adds gradients up on {mesh.device_type} where it should average them when a "
            "model is sharded: take a newer PyTorch, or --set fsdp=false"
        )
    for module in [*(m for m in model.modules() if isinstance(m, Block)), model]:
        fully_shard(module, mesh=mesh)


def _gradients_are_means(mesh: DeviceMesh) -> bool:
    """Whether equal gradients in all processes are reduced to that same gradient."""
    size = mesh.size()
    probe = nn.Linear(size, size, bias=False, device=mesh.device_type)
    fully_shard(probe, mesh=mesh)
    probe(torch.ones(1, size, device=mesh.device_type)).sum().backward()
    gradient = cast(DTensor, probe.weight.grad)
    return bool((gradient.full_tensor() == 1).all())
