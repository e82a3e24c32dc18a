"""Loading a state dict into a model: everything is checked before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch.nn import functional as F

from zoo.config.model import KeySet
from zoo.weights.convert import Optional, check_tensors, convert, nothing

_logger = logging.getLogger(__name__)

Targets = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class LoadReport:
    """What a load did; names are ours.

    Attributes:
        key_set: the published form that the checkpoint was recognised as; "zoo" for our own.
        loaded: names of the parameters and statistics that were written.
        resized: names among them whose relative position table was interpolated to another window.
        dropped: weights for parts that the model lacks (classifier, pruned stages, norms of levels), official keys that
            a rule drops, and keys outside `prefix`, such as a detector's other parts.
        nonfinite: names of written tensors that contain NaN or infinity.
        fresh: names that kept their initial values: norms of levels, which classifiers do not have.
        prefix: the prefix of the keys that were used, such as "module." or "backbone.body.model.".
        part: the keys of a training checkpoint under which they were found, such as "state_dict_ema".
    """

    key_set: str
    loaded: tuple[str, ...]
    resized: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    nonfinite: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    prefix: str = ""
    part: str = ""

    def __str__(self) -> str:
        place = "".join(f" under {name!r}" for name in (self.part, self.prefix) if name)
        lists = {field.name: getattr(self, field.name) for field in fields(self)}
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in lists.items() if isinstance(names, tuple))
        return f"{self.key_set} checkpoint{place}: {counts}"


def convert_and_check(
    state: Mapping[str, torch.Tensor],
    key_sets: Mapping[str, KeySet],
    targets: Targets,
    free: Mapping[str, int | None],
    optional: Optional = nothing,
) -> tuple[dict[str, torch.Tensor], LoadReport]:
    """`state` under our names, and a report of the conversion.

    A relative position table of another window is resized bilinearly, as google-research/maxvit does, which is logged
    as a warning.

    Args:
        state: a state dict in any published form of the variant, or in ours.
        key_sets: the variant's key rules.
        targets: every name of the variant, with a tensor of its shape and dtype.
        free: as for `check_tensors`.
        optional: prefixes of the names that the checkpoint may lack.

    Raises:
        CheckpointError: if keys or shapes do not fit.
    """
    conversion = convert(state, key_sets, targets, optional)
    tensors, resized = dict(conversion.tensors), []
    for name, value in tensors.items():
        shape = targets[name].shape
        if name.endswith("pos_bias.table") and value.shape != shape and value.shape[:1] == shape[:1]:
            tensors[name] = resized_table(value, shape)
            resized.append(name)
    check_tensors(tensors, targets, free)
    if resized:
        _logger.warning("position tables were resized to other windows: %d, the first %s", len(resized), resized[0])
    if conversion.prefix:
        _logger.info("keys were taken from under %r, %d others left", conversion.prefix, len(conversion.dropped))
    return tensors, LoadReport(
        conversion.key_set, tuple(tensors), tuple(resized), conversion.dropped, prefix=conversion.prefix
    )


def resized_table(table: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A relative position table (heads, 2h-1, 2w-1) for another window, by bilinear interpolation."""
    return F.interpolate(table[None].float(), shape[1:], mode="bilinear")[0].to(table.dtype)


def find_nonfinite(tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Names of the tensors that contain NaN or infinity."""
    floating = {name: value for name, value in tensors.items() if value.is_floating_point() and not value.is_meta}
    return tuple(name for name, value in floating.items() if not value.isfinite().all())


def nonfinite(tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """The same names, which are logged as a warning."""
    if names := find_nonfinite(tensors):
        _logger.warning("the checkpoint holds NaN or infinity: %s", ", ".join(names[:5]))
    return names
