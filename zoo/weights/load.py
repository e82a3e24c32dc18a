"""Loading a state dict into a model: everything is checked before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from dataclasses import dataclass, fields

import torch
from torch.nn import functional as F

from zoo.config import KeySet
from zoo.weights.convert import check_tensors, convert

_logger = logging.getLogger(__name__)

Targets = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class LoadReport:
    """What a load did; names are ours.

    Attributes:
        key_set: the published form that the checkpoint was recognised as; "zoo" for our own.
        loaded: parameters and statistics written.
        resized: those of them whose relative position table was interpolated to another window.
        dropped: what the checkpoint holds and the model has been built without (classifier, pruned stages, norms of
            levels), official keys that a rule drops, and the parts of a detector that are not its backbone.
        missing: names of the model that the checkpoint lacks; a load with any raises.
        unexpected: names of the checkpoint that the variant lacks; a load with any raises.
        nonfinite: those written that hold NaN or infinity.
        fresh: names of the model that were left as drawn: norms of levels, which classifiers do not have.
    """

    key_set: str
    loaded: tuple[str, ...]
    resized: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    nonfinite: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = {field.name: len(getattr(self, field.name)) for field in fields(self) if field.name != "key_set"}
        return f"{self.key_set} checkpoint: " + ", ".join(f"{n} {name}" for name, n in counts.items())


def fit(
    state: Mapping[str, torch.Tensor],
    key_sets: Mapping[str, KeySet],
    targets: Targets,
    free: Container[str] = (),
    optional: Container[str] = (),
) -> tuple[dict[str, torch.Tensor], LoadReport]:
    """`state` under our names, and the report of what that took.

    A relative position table of another window is resized bilinearly, as google-research/maxvit does, which is logged
    as a warning.

    Args:
        state: a state dict in any published form of the variant, or in ours.
        key_sets: the variant's key rules.
        targets: every name of the variant, with a tensor of its shape and kind.
        free: names whose shape may differ from the target's.
        optional: names that the checkpoint may lack.

    Raises:
        CheckpointError: if keys or shapes do not fit.
    """
    conversion = convert(state, key_sets, targets, optional)
    tensors, resized = dict(conversion.tensors), []
    for name, value in tensors.items():
        shape = targets[name].shape
        if name.endswith("pos_bias.table") and value.shape != shape and value.shape[:1] == shape[:1]:
            tensors[name] = F.interpolate(value[None].float(), shape[1:], mode="bilinear")[0].to(value.dtype)
            resized.append(name)
    check_tensors(tensors, targets, free)
    if resized:
        _logger.warning("position tables were resized to other windows: %d, the first %s", len(resized), resized[0])
    return tensors, LoadReport(conversion.key_set, tuple(tensors), tuple(resized), conversion.dropped)


def nonfinite(tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Names of the tensors that hold NaN or infinity, which are logged as a warning."""
    floating = {name: value for name, value in tensors.items() if value.is_floating_point() and not value.is_meta}
    names = tuple(name for name, value in floating.items() if not value.isfinite().all())
    if names:
        _logger.warning("the checkpoint holds NaN or infinity: %s", ", ".join(names[:5]))
    return names
