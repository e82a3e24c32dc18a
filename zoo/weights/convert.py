"""Published state dicts to ours: recognised by their keys, strict both ways."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch

from zoo.config import KeySet
from zoo.errors import CheckpointError, ConfigError
from zoo.weights import transforms
from zoo.weights.keys import Renaming, rename

OWN = "zoo"
BACKBONE = "backbone."


@dataclass(frozen=True)
class Conversion:
    """A state dict under our names.

    Attributes:
        tensors: our name to value, after the transforms; names of the targets, and every one that is not optional.
        key_set: the published form it was recognised as; "zoo" for our own.
        dropped: official keys that a rule drops, and those of a detector's other parts.
    """

    tensors: dict[str, torch.Tensor]
    key_set: str
    dropped: tuple[str, ...]


def convert(
    state: Mapping[str, torch.Tensor],
    key_sets: Mapping[str, KeySet],
    targets: Mapping[str, torch.Tensor],
    optional: Container[str] = (),
) -> Conversion:
    """Rename and transform `state` to the names in `targets`.

    The published form whose renamed keys match the most targets is taken. Of a detector or segmenter, whose keys are
    those of its parts, the part `backbone.` is. Shapes are left to the caller.

    Args:
        optional: targets that may be missing.

    Raises:
        CheckpointError: naming the first missing and unexpected keys.
    """
    state, others = _backbone_part(state)
    candidates = {OWN: Renaming({key: (key,) for key in state}, (), ())}
    candidates |= {name: rename(state, rules) for name, rules in key_sets.items()}
    pieces = {name: _pieces(renaming) for name, renaming in candidates.items()}
    key_set = max(candidates, key=lambda name: len(pieces[name].keys() & targets.keys()))
    renaming, found = candidates[key_set], pieces[key_set]
    missing = [key for key in targets if key not in found and key not in optional]
    unexpected = [*renaming.unknown, *(p.key for name in found if name not in targets for p in found[name])]
    repeated = [name for name, parts in found.items() if max(Counter(p.part for p in parts).values()) > 1]
    if missing or unexpected or repeated:
        form = f"read as a checkpoint in {key_set!r} form"
        if others:
            form += ", of a detector or segmenter, whose backbone a model with features_only=True takes"
        raise mismatch(form, missing, unexpected, repeated)
    rules = {} if key_set == OWN else key_sets[key_set].transforms
    tensors = {
        name: _transform(name, _assemble(name, parts, state), rules, targets[name].shape)
        for name, parts in found.items()
    }
    return Conversion(tensors, key_set, (*renaming.dropped, *others))


def of_detector(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict is that of a detector or segmenter, with a part `backbone.`."""
    return any(key.startswith(BACKBONE) for key in state)


def _backbone_part(state: Mapping[str, torch.Tensor]) -> tuple[Mapping[str, torch.Tensor], list[str]]:
    """What stands under `backbone.`, without that prefix, and the other keys; everything where nothing does."""
    inside = {key.removeprefix(BACKBONE): value for key, value in state.items() if key.startswith(BACKBONE)}
    return (inside, [key for key in state if not key.startswith(BACKBONE)]) if inside else (state, [])


@dataclass(frozen=True, order=True)
class _Piece:
    """Where a part of one of our tensors comes from: a published key, and the slice of it where it is split."""

    part: int
    key: str
    index: int
    count: int


def _pieces(renaming: Renaming) -> dict[str, list[_Piece]]:
    """Our names, each with the pieces that it is made of in order."""
    found: dict[str, list[_Piece]] = defaultdict(list)
    for key, names in renaming.names.items():
        for index, name in enumerate(names):
            part = re.search(r"#(\d+)", name)
            plain = name if part is None else name.replace(part[0], "", 1)
            found[plain].append(_Piece(0 if part is None else int(part[1]), key, index, len(names)))
    return {name: sorted(parts) for name, parts in found.items()}


def _assemble(name: str, parts: Sequence[_Piece], state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    values = []
    for piece in parts:
        value = state[piece.key]
        if piece.count > 1 and (value.ndim == 0 or len(value) != piece.count):
            raise CheckpointError(f"{piece.key} is {tuple(value.shape)}, expected {piece.count} rows: {name}, ...")
        values.append(value if piece.count == 1 else value[piece.index])
    if len(values) == 1:
        return values[0]
    try:
        return torch.cat(values)
    except RuntimeError as error:
        shapes = ", ".join(f"{piece.key} {tuple(state[piece.key].shape)}" for piece in parts)
        raise CheckpointError(f"{name} cannot be joined from {shapes}") from error


def check_tensors(
    tensors: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor], free: Container[str] = ()
) -> None:
    """Raise CheckpointError, naming the first few, unless shapes and kinds of number are the targets'.

    The names in `free` may have any shape.
    """
    wrong = []
    for name, value in tensors.items():
        target = targets[name]
        if value.shape != target.shape and name not in free:
            wrong.append(f"{name} is {tuple(value.shape)}, expected {tuple(target.shape)}")
        elif value.is_floating_point() != target.is_floating_point():
            wrong.append(f"{name} is {value.dtype}, expected {target.dtype}")
    if wrong:
        raise CheckpointError(
            f"the checkpoint does not fit the model: {len(wrong)} tensors differ: {_first(wrong, '; ')}"
        )


def mismatch(
    context: str, missing: Sequence[str], unexpected: Sequence[str], repeated: Sequence[str] = ()
) -> CheckpointError:
    """The error for keys that do not fit, with the first few of each kind."""
    kinds = {"missing": missing, "unexpected": unexpected, "given twice": repeated}
    text = "; ".join(f"{len(keys)} {kind} ({_first(keys)})" for kind, keys in kinds.items() if keys)
    return CheckpointError(f"the checkpoint does not fit the model: {context}, {text}")


def _first(items: Sequence[str], separator: str = ", ", count: int = 5) -> str:
    shown = [item if len(item) <= 200 else f"{item[:200]}..." for item in items[:count]]
    return separator.join([*shown, "..."] if len(items) > count else shown)


def _transform(name: str, value: torch.Tensor, rules: Mapping[str, str], shape: torch.Size) -> torch.Tensor:
    for pattern, transform in rules.items():
        if fnmatch.fnmatchcase(name, pattern):
            try:
                value = transforms.apply(transform, value, shape)
            except ConfigError:
                raise
            except (RuntimeError, ValueError, IndexError) as error:
                raise CheckpointError(
                    f"{name} of shape {tuple(value.shape)} cannot be converted by {transform!r} to {tuple(shape)}"
                ) from error
    return value.contiguous()
