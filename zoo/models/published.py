"""Published checkpoints under our names."""

from __future__ import annotations

import hashlib

import torch

from zoo.config.catalog import load_config
from zoo.models.variants import StateDict, published_shapes
from zoo.weights.load import convert_and_check, nonfinite
from zoo.weights.manifest import Checkpoint
from zoo.weights.store import tensors_of


def published_tensors(entry: Checkpoint) -> dict[str, torch.Tensor]:
    """A published checkpoint under our names, downloaded and converted the first time.

    Raises:
        CheckpointError: if it cannot be obtained, read or converted.
    """
    rules = hashlib.sha256(repr(load_config(entry.variant).checkpoints).encode()).hexdigest()

    def convert(state: StateDict) -> dict[str, torch.Tensor]:
        tensors = as_published(state, entry)
        nonfinite(tensors)
        return tensors

    return tensors_of(entry, rules, convert)


def as_published(state: StateDict, entry: Checkpoint) -> dict[str, torch.Tensor]:
    """A state dict under our names, if it has exactly the tensors of a published checkpoint.

    Raises:
        CheckpointError: if it has not.
    """
    config = load_config(entry.variant)
    return convert_and_check(state, config.checkpoints, published_shapes(entry.variant, entry.num_classes), {})[0]
