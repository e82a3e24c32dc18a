"""What a trained checkpoint or a configuration on the Hub says of its model, checked where it enters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from zoo.config.overrides import check_tree
from zoo.config.schema import Positive, Range, check_mapping, dataclass_from_yaml
from zoo.errors import CheckpointError, ConfigError, Where, shorten


@dataclass(frozen=True)
class Description:
    """The input transform and the classes of a model, in timm's terms; what is None is not said."""

    mean: tuple[float, ...] | None = None
    std: tuple[Positive, ...] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = None
    crop_pct: Annotated[float, Range(0.01, 4.0)] | None = None
    crop_mode: Literal["center", "squash", "border"] | None = None
    license: str | None = None
    label_names: tuple[str, ...] | None = None
    label_descriptions: Any = None


def check_description(values: Any, place: str) -> dict[str, Any]:
    """What `values` say of the attributes of a `Description`; what else they hold is ignored.

    Raises:
        CheckpointError: if something is of the wrong type or out of range.
    """
    where = Where(f"{place}: what it says of its model")
    try:
        check_tree(values, where)
        known = {
            key: value for key, value in check_mapping(values, where).items() if key in Description.__annotations__
        }
        dataclass_from_yaml(Description, known, where)
        words = known.get("label_descriptions")
        words = {} if words is None else check_mapping(words, where / "label_descriptions")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    if wrong := [name for name, text in words.items() if not isinstance(text, str)]:
        raise CheckpointError(f"{where}: label_descriptions.{shorten(wrong[0])}: expected text")
    return {key: value for key, value in known.items() if value is not None}


def check_overrides(values: Any, place: str) -> dict[str, Any]:
    """Configuration keys from a file.

    Raises:
        CheckpointError: if they are not a mapping of text to values.
    """
    where = Where(f"{place}: its overrides")
    try:
        check_tree(values, where)
        return check_mapping(values, where)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def check_counts(described: Mapping[str, Any], classes: int | None, channels: int | None, place: str) -> None:
    """Check that there are as many names as classes, and as many numbers as channels, or one for all.

    Raises:
        CheckpointError: if not.
    """
    if (names := described.get("label_names")) and classes is not None and len(names) != classes:
        raise CheckpointError(f"{place}: names {len(names)} classes and has {classes}")
    for key in ("mean", "std"):
        values = described.get(key)
        if values is not None and channels is not None and len(values) not in (1, channels):
            raise CheckpointError(f"{place}: {key} has {len(values)} numbers, expected 1 or {channels}, its channels")
