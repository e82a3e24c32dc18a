"""The manifest of published checkpoints, read from `weights_manifest.yaml`."""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from zoo.config.catalog import CONFIG_DIR, read_yaml
from zoo.config.schema import Count, Positive, check_fields, check_mapping
from zoo.errors import Where

MANIFEST = CONFIG_DIR.parent / "weights_manifest.yaml"

PATTERNS = {"file": r"[\w-][\w.-]*", "sha256": r"[0-9a-f]{64}"}


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint; the top of the manifest explains each field."""

    id: str
    variant: str
    host: Literal["hub", "direct", "drive", "browser"]
    hub: str | None
    sources: tuple[str, ...]
    file: str
    sha256: str | None
    size: Count | None
    paper: str
    code: str
    licence_code: str
    licence_weights: str | None
    data: str
    num_classes: Count
    img_size: Count
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"]
    crop_pct: Positive
    crop_mode: Literal["center", "squash"]
    top1: float | None
    top1_timm: float | None
    params_m: float
    gmacs: float

    @property
    def tag(self) -> str:
        """The part of the id after the variant, as timm names its weights."""
        return self.id.partition(".")[2]

    @property
    def by_machine(self) -> bool:
        """Whether it can be downloaded automatically."""
        return self.host in ("hub", "direct")

    @property
    def input_transform(self) -> dict[str, Any]:
        """How an image must be prepared."""
        return {name: getattr(self, name) for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}


@cache
def _entries(path: Path) -> dict[str, Any]:
    return check_mapping(read_yaml(path).get("checkpoints"), Where(str(path), ("checkpoints",)))


@cache
def _fields() -> dict[str, Any]:
    hints = typing.get_type_hints(Checkpoint, include_extras=True)
    return {field.name: hints[field.name] for field in fields(Checkpoint) if field.name != "id"}


@cache
def _checkpoint(path: Path, key: str) -> Checkpoint:
    here = Where(str(path)) / "checkpoints" / key
    annotations = _fields()
    values = check_fields(check_mapping(_entries(path)[key], here), annotations, set(annotations), here)
    for name, pattern in PATTERNS.items():
        if values[name] is not None and not re.fullmatch(pattern, values[name]):
            raise (here / name).error(values[name], f"text of the form {pattern}")
    return Checkpoint(id=key, **values)


def checkpoints() -> tuple[Checkpoint, ...]:
    """Every entry, in file order: a variant's first checkpoint that can be downloaded automatically is its default.

    Raises:
        ConfigError: for a missing, unknown or malformed field.
    """
    return tuple(_checkpoint(MANIFEST, key) for key in _entries(MANIFEST))


def checkpoints_of(variant: str) -> tuple[Checkpoint, ...]:
    """The published checkpoints of one variant."""
    return tuple(_checkpoint(MANIFEST, key) for key in _entries(MANIFEST) if key.partition(".")[0] == variant)


def default_checkpoint(variant: str, tag: str | None = None) -> Checkpoint | None:
    """The checkpoint with this tag, by default the first that downloads automatically, else the first; None if none."""
    entries = [entry for entry in checkpoints_of(variant) if tag in (None, entry.tag)]
    return min(entries, key=lambda entry: not entry.by_machine, default=None)


def sources_of(entries: Sequence[Checkpoint]) -> tuple[str, ...]:
    """Where code, paper and weights of checkpoints are."""
    found: dict[str, None] = {}
    for entry in entries:
        hub = [f"https://huggingface.co/{entry.hub}"] if entry.hub else []
        found |= dict.fromkeys([entry.code, entry.paper, *hub, *entry.sources])
    return tuple(found)
