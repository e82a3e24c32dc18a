"""The configuration of a model as frozen dataclasses, which `parse.py` creates from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from zoo.config.schema import (
    Positive,
    check,
    check_fields,
    check_mapping,
    dataclass_from_yaml,
)
from zoo.errors import ConfigError, Where

NORMS = ("layernorm", "batchnorm")


@dataclass(frozen=True)
class Norm:
    """A normalisation layer: `layernorm`, `layernorm:1e-6`, `batchnorm:1e-3`, ..."""

    type: str
    eps: float = 1e-5

    @classmethod
    def from_yaml(cls, value: Any, where: Where) -> Norm:
        if isinstance(value, Norm):
            return value
        if not isinstance(value, str):
            raise where.error(value, "a norm such as 'layernorm' or 'layernorm:1e-6'")
        name, _, eps = value.partition(":")
        if name not in NORMS:
            raise where.unknown(name, NORMS, "norm")
        try:
            return cls(name) if not eps else cls(name, check(float(eps), Positive, where))
        except ValueError as error:
            raise where.error(value, "a norm such as 'layernorm:1e-6'") from error


@dataclass(frozen=True)
class Part:
    """A registered module by name, and its keyword arguments."""

    type: str
    params: Mapping[str, Any]
    where: Where = field(compare=False)

    @classmethod
    def from_yaml(cls, value: Any, where: Where) -> Part:
        if isinstance(value, Part):
            return value
        params = check_mapping(value, where)
        if "type" not in params:
            raise ConfigError(f"{where}: the key 'type' is missing")
        return cls(check(params.pop("type"), str, where / "type"), params, where)


@dataclass(frozen=True)
class BranchConfig:
    """One branch: y = shortcut(x) + drop_path(gamma * post_norm(fn(norm(x)))); no shortcut unless `residual`.

    Attributes:
        reads: tensors that `fn` receives by name: "block" and "branch", their inputs, or tensors of the stage's
            context.
        writes: tensors of the context whose new values `fn` returns after its output.
    """

    name: str
    part: Part
    norm: Norm | None = None
    post_norm: Norm | None = None
    residual: bool = True
    layer_scale: Positive | None = None
    drop_path: bool = True
    shortcut: Part | None = None
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageConfig:
    """An embed and the branches of each block after it.

    Attributes:
        after: the stage whose map this one sees; None for the one before.
        context: computes tensors from the maps of all previous stages, for branches that read them.
        level: whether the map is part of the pyramid.
    """

    dim: int
    embed: Part | None
    blocks: tuple[tuple[BranchConfig, ...], ...]
    where: Where = field(compare=False)
    after: int | None = None
    context: Part | None = None
    level: bool = True


@dataclass(frozen=True)
class HeadConfig:
    """The classifier: norm before or after the global pool, optionally a tanh layer before the last."""

    order: Literal["norm_pool", "pool_norm"]
    norm: Norm
    pre_logits: bool = False

    @classmethod
    def from_yaml(cls, value: Any, where: Where) -> HeadConfig:
        return dataclass_from_yaml(cls, value, where)


@dataclass(frozen=True)
class KeySet:
    """Rules that rename one published form of a checkpoint to our keys; `None` drops a key, a list splits its value."""

    keys: Mapping[str, str | tuple[str, ...] | None]
    transforms: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_yaml(cls, value: Any, where: Where) -> KeySet:
        entry = check_mapping(value, where)
        check_fields(entry, {"keys": Any, "transforms": Any}, {"keys"}, where)
        targets = {"keys": str | tuple[str, ...] | None, "transforms": str}
        tables = {
            name: {
                pattern: check(target, targets[name], where / name / pattern)
                for pattern, target in check_mapping(table, where / name).items()
            }
            for name, table in entry.items()
        }
        return cls(**tables)


@dataclass(frozen=True)
class ModelConfig:
    """Everything that defines one variant.

    Attributes:
        stage_norm: norm at the end of each stage except the last, whose norm belongs to the head.
        level_norm: norm of each stage's map when it is returned as a level of a pyramid.
        source, overrides: the arguments of `load_config`.
        output_stride: the coarsest stride of a map; None for the variant's own.
    """

    name: str
    family: str
    img_size: tuple[int, int]
    stages: tuple[StageConfig, ...]
    stage_norm: Norm | None
    level_norm: tuple[Norm | None, ...]
    head: HeadConfig
    init: str
    drop_path_rate: float
    no_weight_decay: tuple[str, ...]
    lr_scale: Mapping[str, float]
    checkpoints: Mapping[str, KeySet]
    where: Where = field(compare=False)
    source: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    output_stride: int | None = None

    @property
    def branching(self) -> bool:
        """Whether any stage reads more than the map of the previous stage."""
        return any(stage.after is not None or stage.context is not None for stage in self.stages)
