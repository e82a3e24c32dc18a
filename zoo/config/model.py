"""YAML configuration to frozen dataclasses.

A family file holds a base, `variants` that override it, and the key rules of published checkpoints. Beside the rules of
`overrides.py`, a stage knows:

* `branches: [mlp]` selects which branches its blocks have;
* `first: {...}` in a branch holds for block 0 alone, `at: [2, 5]` keeps a branch in those blocks only.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from zoo.config.overrides import check_tree, compute_values, override, take_cycles
from zoo.config.schema import (
    Count,
    Index,
    Positive,
    Range,
    Rate,
    Size,
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
    """One branch: y = shortcut(x) + drop_path(gamma * post_norm(fn(norm(x)))); no shortcut where not `residual`.

    Attributes:
        reads: tensors that `fn` gets by name: "block" and "branch", the inputs of these, or those of a stage's context.
        writes: tensors of the context that `fn` gives new values for, after its output.
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
        context: what makes tensors of the maps of all stages before, for branches that read them.
        level: whether the map is one of the pyramid.
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
        stage_norm: norm at the end of each stage but the last, whose norm is the head's.
        level_norm: norm of each stage's map where it is handed out as a level of a pyramid.
        source, overrides: what `load_config` was given for it.
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
        """Whether a stage sees more than the map of the one before."""
        return any(stage.after is not None or stage.context is not None for stage in self.stages)


_MODEL_KEYS: dict[str, Any] = {
    "family": str,
    "img_size": Size,
    "stem": Any,
    "downsample": Any,
    "block": Any,
    "stages": Any,
    "stage_norm": Norm,
    "level_norm": Norm | tuple[Norm | None, ...],
    "head": HeadConfig,
    "init": str,
    "drop_path_rate": Rate,
    "no_weight_decay": tuple[str, ...],
    "lr_scale": Any,
    "options": Any,
    "checkpoints": Any,
}
_REQUIRED = {"family", "img_size", "stem", "block", "stages", "head", "init"}


def parse_model(name: str, tree: Mapping[str, Any], where: Where) -> ModelConfig:
    """The `ModelConfig` of a resolved configuration tree.

    Raises:
        ConfigError: for anything missing, unknown or of the wrong kind.
    """
    tree = check_mapping(tree, where)
    check_tree(tree, where)
    values = {"img_size": check(tree.get("img_size", 224), Size, where / "img_size")}
    options = check_mapping(tree.get("options", {}), where / "options")
    values |= {
        key: check(value, int | float | str | Size | None, where / "options" / key) for key, value in options.items()
    }
    tree = compute_values({key: value for key, value in tree.items() if key != "options"}, values, where)
    fields = check_fields(tree, _MODEL_KEYS, _REQUIRED, where)
    checkpoints = check_mapping(fields.get("checkpoints", {}), where / "checkpoints")
    scales = check_mapping(fields.get("lr_scale", {}), where / "lr_scale")
    stages = _parse_stages(tree, where)
    return ModelConfig(
        name=name,
        family=fields["family"],
        img_size=fields["img_size"],
        stages=stages,
        stage_norm=fields.get("stage_norm"),
        level_norm=_parse_level_norm(fields.get("level_norm", Norm("layernorm")), len(stages), where / "level_norm"),
        head=fields["head"],
        init=fields["init"],
        drop_path_rate=fields.get("drop_path_rate", 0.0),
        no_weight_decay=fields.get("no_weight_decay", ()),
        lr_scale={key: check(value, Positive, where / "lr_scale" / key) for key, value in scales.items()},
        checkpoints={key: KeySet.from_yaml(v, where / "checkpoints" / key) for key, v in checkpoints.items()},
        where=where,
    )


def _parse_stages(tree: Mapping[str, Any], where: Where) -> tuple[StageConfig, ...]:
    stages, here = tree["stages"], where / "stages"
    if not isinstance(stages, list) or not 1 <= len(stages) <= 16:
        raise here.error(stages, "a list of 1 to 16 stages")
    block = check_mapping(tree["block"], where / "block")
    if not block:
        raise (where / "block").error(block, "at least one branch")
    parsed = []
    for i, stage in enumerate(stages):
        key = "stem" if i == 0 else "downsample"
        embed = None if tree.get(key) is None else Part.from_yaml(tree[key], where / key)
        parsed.append(_parse_stage(check_mapping(stage, here / i), block, embed, here / i))
        if parsed[-1].after is not None and parsed[-1].after >= i:
            raise (here / i / "after").error(parsed[-1].after, "the index of a stage before this one")
    if not parsed[-1].level:
        raise (here / (len(parsed) - 1) / "level").error(False, "true for the last stage, which is classified")
    return tuple(parsed)


def _parse_level_norm(value: Norm | tuple[Norm | None, ...], stages: int, where: Where) -> tuple[Norm | None, ...]:
    norms = value if isinstance(value, tuple) else (value,) * stages
    if len(norms) != stages:
        raise where.error(value, f"one norm, or {stages} of them, one a stage")
    return norms


def _parse_stage(stage: dict[str, Any], block: dict[str, Any], embed: Part | None, where: Where) -> StageConfig:
    graph = {"after": Index | None, "context": Part | None, "level": bool}
    own = {"dim": Count, "depth": Annotated[int, Range(1, 512)], "branches": tuple[str, ...], **graph}
    changes = {key: value for key, value in stage.items() if key not in own}
    for key in changes:
        if key.partition(".")[0] not in block:
            raise where.unknown(key, [*own, *block, *(f"{name}.<key>" for name in block)])
    fields = check_fields({k: v for k, v in stage.items() if k in own}, own, {"dim", "depth"}, where)
    selected = fields.get("branches", tuple(block))
    for name in selected:
        if name not in block:
            raise (where / "branches").unknown(name, block, "branch")
    branches = override({name: block[name] for name in selected}, changes, where)
    check_tree(branches, where)
    blocks = tuple(_parse_block(branches, i, where) for i in range(fields["depth"]))
    return StageConfig(fields["dim"], embed, blocks, where, **{key: fields[key] for key in graph if key in fields})


def _parse_block(branches: Mapping[str, Any], index: int, where: Where) -> tuple[BranchConfig, ...]:
    parsed = []
    for name, spec in branches.items():
        here = where / name
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise here.error(name, "a branch name of letters, digits and _")
        spec = check_mapping(take_cycles(spec, index, here), here)
        only = check(spec.pop("at", None), tuple[Index, ...] | None, here / "at")
        first = check_mapping(spec.pop("first", {}), here / "first")
        if only is None or index in only:
            parsed.append(_parse_branch(name, {**spec, **first} if index == 0 else spec, here))
    return tuple(parsed)


def _parse_branch(name: str, spec: dict[str, Any], where: Where) -> BranchConfig:
    annotations = typing.get_type_hints(BranchConfig, include_extras=True)
    own = {key: annotations[key] for key in annotations if key not in ("name", "part")}
    values = {key: spec.pop(key) for key in own if key in spec}
    return BranchConfig(name, Part.from_yaml(spec, where), **check_fields(values, own, set(), where))
