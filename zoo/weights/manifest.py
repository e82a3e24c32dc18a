"""The manifest of published checkpoints, read from `weights_manifest.yaml`."""

from __future__ import annotations

import typing
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal

from zoo.catalog import CONFIG_DIR, read_yaml
from zoo.errors import Where
from zoo.schema import Count, Positive, check_fields, check_mapping

MANIFEST = CONFIG_DIR.parent / "weights_manifest.yaml"


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint; the head of the manifest says what each field means."""

    id: str
    variant: str
    host: Literal["hub", "direct", "browser"]
    hub: str | None
    sources: tuple[str, ...]
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
        """The part of the id behind the variant, as timm names its weights."""
        return self.id.partition(".")[2]

    @property
    def hub_file(self) -> str | None:
        """The file in the Hub repository, where it is not one of the names that timm looks for."""
        prefix = f"https://huggingface.co/{self.hub}/resolve/main/"
        files = [source.removeprefix(prefix).partition("?")[0] for source in self.sources if source.startswith(prefix)]
        return files[0] if files else None

    @property
    def input_transform(self) -> dict[str, Any]:
        """How an image must be prepared."""
        return {name: getattr(self, name) for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}


@cache
def checkpoints() -> tuple[Checkpoint, ...]:
    """Every entry, in the order of the file: the first of a variant that a machine can fetch is its default.

    Raises:
        ConfigError: for a missing, unknown or malformed field.
    """
    where = Where(str(MANIFEST))
    hints = typing.get_type_hints(Checkpoint, include_extras=True)
    required = {field.name for field in fields(Checkpoint)} - {"id"}
    annotations = {name: hints[name] for name in required}
    entries = check_mapping(read_yaml(MANIFEST).get("checkpoints"), where / "checkpoints")
    found = []
    for key, entry in entries.items():
        here = where / "checkpoints" / key
        values: dict[str, Any] = check_fields(check_mapping(entry, here), annotations, required, here)
        found.append(Checkpoint(id=key, **values))
    return tuple(found)


def checkpoints_of(variant: str) -> tuple[Checkpoint, ...]:
    """The published checkpoints of one variant."""
    return tuple(entry for entry in checkpoints() if entry.variant == variant)
