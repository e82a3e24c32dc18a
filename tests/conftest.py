"""What every test module shares: the registry is the test list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported

import pytest

import zoo
from zoo.config.catalog import family_of, load_config, read_yaml, shipped
from zoo.config.model import StageConfig
from zoo.nn.backbone import Backbone

VARIANTS = zoo.list_models()
PUBLISHED = [name for name in VARIANTS if not name.startswith("hybrid_")]


def _size(name: str) -> tuple[int, int]:
    stages = load_config(name).stages
    return sum(stage.dim for stage in stages), sum(len(stage.blocks) for stage in stages)


SMALLEST = {
    family_of(names[0]): min(names, key=_size)
    for names in (list(read_yaml(path)["variants"]) for path in sorted(set(shipped().values())))
}
"""A quick variant of every family: the narrowest, of those the shallowest, of those the first in its file."""


def _parts(*stages: StageConfig) -> set[str]:
    """The registered parts that stages consist of."""
    branches = {branch.part.type for stage in stages for block in stage.blocks for branch in block}
    return branches | {stage.embed.type for stage in stages if stage.embed is not None}


def _bringing_parts(whole: Iterable[tuple[Any, Iterable[StageConfig]]]) -> list[Any]:
    """Of named groups of stages those that have a part which the ones before them lack."""
    known: set[str] = set()
    chosen = []
    for name, stages in whole:
        if not _parts(*stages) <= known:
            known |= _parts(*stages)
            chosen.append(name)
    return chosen


NEW = _bringing_parts(
    ((family, stage), [stage]) for family, name in sorted(SMALLEST.items()) for stage in load_config(name).stages
)
COVERING = {family: [stage for of, stage in NEW if of == family] for family, _ in NEW}
"""Stages that together have every part, under the families that they are taken from."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For many small operations, which more threads only slow down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=sorted(SMALLEST))
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return request.param


@pytest.fixture
def small(family: str) -> str:
    """The quick variant of each family in turn."""
    return SMALLEST[family]


def cut(name: str) -> dict[str, int]:
    """Settings that leave a variant a block or two a stage."""
    depths = [len(stage.blocks) for stage in load_config(name).stages]
    return {f"stages.{i}.depth": min(depth, 2 - i % 2) for i, depth in enumerate(depths)}


@pytest.fixture(params=COVERING)
def each_part(request: pytest.FixtureRequest) -> torch.nn.Module:
    """A few blocks that have the parts which a family adds, for what takes long and depends on the parts alone."""
    config, chosen = load_config(SMALLEST[request.param]), COVERING[request.param]
    first = chosen[0].blocks
    stages = (replace(chosen[0], blocks=first[: 2 if first[1:2] != first[:1] else 1]),)
    stages += tuple(replace(stage, blocks=stage.blocks[:1]) for stage in chosen[1:])
    return Backbone(replace(config, stages=stages, level_norm=config.level_norm[: len(stages)]), num_classes=10).eval()


@pytest.fixture
def shallow(small: str) -> torch.nn.Module:
    """The quick variant of each family with a block or two a stage: every part of it, quick to compile and export."""
    return zoo.create_model(small, num_classes=10, drop_path_rate=0.0, **cut(small)).eval()
