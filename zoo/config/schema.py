"""Checks a value from YAML against a Python annotation and converts it.

The keyword arguments of a part (a mixer, an embed, ...) are its configuration keys, so one
checker serves the frozen dataclasses of `config.py` and the constructors of every part.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union

from zoo.errors import ConfigError, Where


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of a number, for use in `Annotated`."""

    low: float
    high: float


Count = Annotated[int, Range(1, 65536)]
"""A number of things: channels, heads, blocks, pixels of a kernel."""
Index = Annotated[int, Range(0, 65536)]
"""A position or a width that may be zero."""
Rate = Annotated[float, Range(0.0, 0.999)]
"""A probability of dropping something."""
Positive = Annotated[float, Range(1e-12, 1e6)]
"""A positive real number."""
Size = tuple[Count, Count]
"""A (height, width) pair; a single number in YAML stands for a square."""


def check(value: Any, annotation: Any, where: Where) -> Any:
    """`value` converted to `annotation`.

    Raises:
        ConfigError: naming the place, the value found and what is allowed.
    """
    origin = typing.get_origin(annotation)
    if annotation is Any:
        return value
    if hasattr(annotation, "from_yaml"):
        return annotation.from_yaml(value, where)
    if origin is Annotated:
        return _check_range(value, annotation, where)
    if origin is Literal:
        return _check_literal(value, typing.get_args(annotation), where)
    if origin in (Union, types.UnionType):
        return _check_union(value, typing.get_args(annotation), where)
    if origin is tuple:
        return _check_tuple(value, typing.get_args(annotation), where)
    return _check_scalar(value, annotation, where)


def _check_scalar(value: Any, kind: type, where: Where) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**63 else math.inf
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise where.error(value, "a finite number")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise where.error(value, _describe(kind))
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        raise where.error(value, "text in UTF-8: rename the file, or set a locale that has its letters")
    return value


def _check_range(value: Any, annotation: Any, where: Where) -> Any:
    kind, *extra = typing.get_args(annotation)
    value = check(value, kind, where)
    for bounds in extra:
        if not bounds.low <= value <= bounds.high:
            raise where.error(value, _describe(annotation))
    return value


def _check_literal(value: Any, allowed: tuple, where: Where) -> Any:
    for choice in allowed:
        if type(value) is type(choice) and value == choice:
            return value
    raise where.unknown(value, map(str, allowed), what="value")


def _check_union(value: Any, choices: tuple, where: Where) -> Any:
    if value is None and type(None) in choices:
        return None
    choices = tuple(c for c in choices if c is not type(None))
    if len(choices) == 1:
        return check(value, choices[0], where)
    for choice in choices:
        try:
            return check(value, choice, where)
        except ConfigError:
            continue
    raise where.error(value, " or ".join(map(_describe, choices)))


def _check_tuple(value: Any, items: tuple, where: Where) -> tuple:
    if len(items) == 2 and items[1] is Ellipsis:
        if not isinstance(value, list | tuple):
            raise where.error(value, f"a list of {_describe(items[0])}")
        return tuple(check(v, items[0], where / i) for i, v in enumerate(value))
    if isinstance(value, int | float):
        value = (value,) * len(items)
    if not isinstance(value, list | tuple) or len(value) != len(items):
        raise where.error(value, f"one or {len(items)} of {_describe(items[0])}")
    return tuple(check(v, item, where / i) for i, (v, item) in enumerate(zip(value, items, strict=True)))


def dataclass_from_yaml(cls: type, value: Any, where: Where) -> Any:
    """An instance of the frozen dataclass `cls`, its fields checked against their annotations."""
    if isinstance(value, cls):
        return value
    return cls(**check_fields(check_mapping(value, where), *_fields(cls), where))


@cache
def _fields(cls: type) -> tuple[dict[str, Any], set[str]]:
    """The annotations of a dataclass, and the fields that must be given."""
    missing = dataclasses.MISSING
    required = {f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing}
    return typing.get_type_hints(cls, include_extras=True), required


def _describe(annotation: Any) -> str:
    if typing.get_origin(annotation) is Annotated:
        kind, bounds = typing.get_args(annotation)
        return f"{_describe(kind)} from {bounds.low:g} to {bounds.high:g}"
    if typing.get_origin(annotation) is tuple:
        return f"a list of {_describe(typing.get_args(annotation)[0])}"
    if typing.get_origin(annotation) is Literal:
        return " or ".join(map(repr, typing.get_args(annotation)))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def check_mapping(value: Any, where: Where) -> dict[str, Any]:
    """`value` as a dictionary with text keys."""
    if not isinstance(value, Mapping):
        raise where.error(value, "a mapping of keys to values")
    for key in value:
        if not isinstance(key, str):
            raise where.error(key, "a key that is text")
    return dict(value)


def check_fields(
    values: Mapping[str, Any], annotations: Mapping[str, Any], required: set[str], where: Where
) -> dict[str, Any]:
    """Every entry of `values` checked against `annotations`; unknown and missing keys are refused."""
    for key in values:
        if key not in annotations:
            raise where.unknown(key, annotations)
    for key in sorted(required - set(values)):
        raise ConfigError(f"{where}: the key {key!r} is missing")
    return {key: check(value, annotations[key], where / key) for key, value in values.items()}
