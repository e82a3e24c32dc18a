"""Converts published state dicts to ours: recognised by their keys, strict in both directions."""

from __future__ import annotations

import fnmatch
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from zoo.config.model import KeySet
from zoo.errors import CheckpointError, ConfigError
from zoo.weights import transforms
from zoo.weights.files import is_average
from zoo.weights.keys import Renaming, rename

OWN = "zoo"
HEAD = "head."


_MOST_DOTS = 8
_LEAST_SHARE = 16

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """A state dict under our names.

    Attributes:
        tensors: our name to value, after the transforms; only target names, and all that are not optional.
        key_set: the published form it was recognised as; "zoo" for our own.
        dropped: official keys that a rule drops, and keys without the prefix.
        prefix: the prefix of every key that was used, as in "model." or "backbone.body.model.".
    """

    tensors: dict[str, torch.Tensor]
    key_set: str
    dropped: tuple[str, ...]
    prefix: str


@dataclass(frozen=True, order=True)
class _Piece:
    """Where a part of one of our tensors comes from: a published key, and the slice of it where it is split."""

    part: int
    key: str
    index: int
    count: int


@dataclass(frozen=True)
class Part:
    """The keys of a state dict that share a prefix, read as one published format.

    Attributes:
        state: the tensors, by their keys without the prefix.
        pieces: our names, each with its sources.
    """

    prefix: str
    key_set: str
    state: Mapping[str, torch.Tensor]
    renaming: Renaming
    pieces: Mapping[str, list[_Piece]]

    def matches(self, targets: Container[str]) -> int:
        """The number of our names that it contains."""
        return sum(name in targets for name in self.pieces)

    def unexpected(self, targets: Container[str]) -> list[str]:
        """Its keys that map to none of our names."""
        return [*self.renaming.unknown, *(p.key for name in self.pieces if name not in targets
                                          for p in self.pieces[name])]  # fmt: skip

    def repeated(self) -> list[str]:
        """Our names that it contains twice."""
        return [name for name, parts in self.pieces.items() if max(Counter(p.part for p in parts).values()) > 1]

    def has_classifier(self) -> bool:
        """Whether it comes from a classifier, not from a detector's backbone or a pyramid."""
        return any(name.startswith(HEAD) for name in self.pieces)


Optional = Callable[[Part], tuple[str, ...]]
"""For a checkpoint, the prefixes of the names that it may lack."""


def nothing(part: Part) -> tuple[str, ...]:
    """The checkpoint must be complete."""
    return ()


def convert(
    state: Mapping[str, torch.Tensor],
    key_sets: Mapping[str, KeySet],
    targets: Mapping[str, torch.Tensor],
    optional: Optional = nothing,
) -> Conversion:
    """Rename and transform `state` to the names in `targets`.

    Among the published formats and the parts that share a prefix (`backbone.` of a detector, `model.` of a training
    script), the one whose renamed keys match the most targets is used. The caller checks the shapes.

    Args:
        optional: prefixes of the targets that may be missing.

    Raises:
        CheckpointError: naming the first missing and unexpected keys.
    """
    part = recognise(state, key_sets, targets)
    may_lack = optional(part)
    missing = [key for key in targets if key not in part.pieces and not key.startswith(may_lack)]
    unexpected, repeated = part.unexpected(targets), part.repeated()
    if missing or unexpected or repeated:
        form = f"read as a checkpoint in {part.key_set!r} form"
        if part.prefix:
            form += f" under {part.prefix!r}"
        if part.matches(targets) and not part.has_classifier():
            form += (
                ", of a detector, segmenter or pyramid, without a classifier, which a model with features_only=True "
                "or with a new classifier (num_classes=...) takes"
            )
        raise mismatch(form, missing, unexpected, repeated)
    rules = {} if part.key_set == OWN else key_sets[part.key_set].transforms
    tensors = {
        name: _transform(name, _assemble(name, parts, part.state), rules, targets[name].shape)
        for name, parts in part.pieces.items()
    }
    beside = (key for key in state if not key.startswith(part.prefix))
    return Conversion(tensors, part.key_set, (*part.renaming.dropped, *beside), part.prefix)


def recognise(state: Mapping[str, torch.Tensor], key_sets: Mapping[str, KeySet], targets: Container[str]) -> Part:
    """The part of a state dict, in the published format that gives the most names in `targets`."""
    whole = _read_part(state, "", key_sets, targets)
    if not whole.unexpected(targets):
        return whole
    parts = [whole, *(_read_part(state, prefix, key_sets, targets) for prefix in _prefixes(state))]
    most = max(part.matches(targets) for part in parts)
    best = [part for part in parts if part.matches(targets) == most]
    chosen = next((part for part in best if is_average(part.prefix)), best[0])
    if most and len(best) > 1:
        prefixes = ", ".join(repr(part.prefix) for part in best)
        _logger.warning("the checkpoint holds several models, under %s: %r is taken", prefixes, chosen.prefix)
    return chosen


def _read_part(
    state: Mapping[str, torch.Tensor], prefix: str, key_sets: Mapping[str, KeySet], targets: Container[str]
) -> Part:
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    forms = {OWN: Renaming({key: (key,) for key in inside}, (), ())}
    forms |= {name: rename(inside, rules) for name, rules in key_sets.items()}
    parts = [Part(prefix, name, inside, renaming, _pieces(renaming)) for name, renaming in forms.items()]
    return max(parts, key=lambda part: part.matches(targets))


def _prefixes(state: Iterable[str]) -> list[str]:
    """Common prefixes of the keys, up to a dot, shortest first."""
    counts: Counter[str] = Counter()
    keys = list(state)
    for key in keys:
        names = key.split(".")
        counts.update(".".join(names[:count]) + "." for count in range(1, min(len(names), _MOST_DOTS + 1)))
    found = [prefix for prefix, count in counts.items() if count * _LEAST_SHARE >= len(keys)]
    return sorted(found, key=lambda prefix: prefix.count("."))


def _pieces(renaming: Renaming) -> dict[str, list[_Piece]]:
    """Our names, each with its pieces in order."""
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
    tensors: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor], free: Mapping[str, int | None]
) -> None:
    """Raise CheckpointError, naming the first few, unless shapes and kinds of number match the targets.

    Args:
        free: names with an axis along which they may have another length, at least 1 and the same for all names with
            that axis; None for a name that may have any shape.
    """
    wrong: list[str] = []
    lengths: dict[int, int] = {}
    for name, value in tensors.items():
        shape, axis = targets[name].shape, free.get(name, -1)
        if axis is None:
            shape = value.shape
        elif axis >= 0 and value.ndim == len(shape) and value.shape[axis]:
            length = lengths.setdefault(axis, value.shape[axis])
            shape = torch.Size([*shape[:axis], length, *shape[axis + 1 :]])
        if value.shape != shape:
            wrong.append(f"{name} is {tuple(value.shape)}, expected {tuple(shape)}")
        elif value.is_floating_point() != targets[name].is_floating_point():
            wrong.append(f"{name} is {value.dtype}, expected {targets[name].dtype}")
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
