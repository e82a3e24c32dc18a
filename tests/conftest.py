"""What every test module shares: the registry is the test list."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported

import pytest

import zoo
from zoo.config.catalog import load_config

VARIANTS = zoo.list_models()
PUBLISHED = [name for name in VARIANTS if not name.startswith("hybrid_")]
SMALLEST = {
    "biformer": "biformer_tiny",
    "crossformer": "crossformer_tiny",
    "davit": "davit_tiny",
    "dinat": "dinat_mini",
    "dinat_s": "dinat_s_tiny",
    "hybrid": "hybrid_neighborhood_routing_global",
    "litv2": "litv2_s",
    "maxvit": "maxvit_rmlp_pico_rw_256",
    "nat": "nat_mini",
    "nat_isotropic": "nat_isotropic_small",
    "transnext": "transnext_micro",
}
"""A quick variant of every family; `test_house.py` holds that no family is missing."""


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


@pytest.fixture
def shallow(small: str) -> torch.nn.Module:
    """The quick variant of each family with a block or two a stage: every part of it, quick to compile and export."""
    return zoo.create_model(small, num_classes=10, drop_path_rate=0.0, **cut(small)).eval()
