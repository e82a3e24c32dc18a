"""Parses YAML configurations into the dataclasses of `model.py`.

A family file holds a base, `variants` that override it, and the key rules of published checkpoints. In addition to the
rules of `overrides.py`, a stage supports:

* `branches: [mlp]` selects which branches its blocks have;
* `first: {...}` in a branch applies to block 0 only, `at: [2, 5]` keeps a branch in those blocks only.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from zoo.config.model import BranchConfig, HeadConfig, KeySet, ModelConfig, Norm, Part, StageConfig
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
)
from zoo.errors import Where

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
