"""Names, shapes and kinds of every variant's parameters and buffers, as they were when its checkpoints were published."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from tests.conftest import VARIANTS
from zoo.backbone import Backbone
from zoo.catalog import load_config

DIGESTS: dict[str, str] = json.loads((Path(__file__).parent / "state_dicts.json").read_text())
"""Of a new variant, add what the failing test prints, once its golden record passes."""


@pytest.mark.parametrize("name", VARIANTS)
def test_names_and_shapes_stay(name: str) -> None:
    with torch.device("meta"):
        state = Backbone(load_config(name)).state_dict()
    lines = [f"{key} {tuple(value.shape)} {value.dtype}" for key, value in state.items()]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == DIGESTS.get(name)


def test_no_variant_is_gone() -> None:
    assert sorted(DIGESTS) == sorted(VARIANTS)
