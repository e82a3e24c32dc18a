"""Names, shapes and kinds of number of parameters and buffers stay as users' checkpoints hold them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from zoo.config.catalog import load_config
from zoo.nn.backbone import Backbone

DIGESTS: dict[str, str] = json.loads((Path(__file__).parent / "state_dicts.json").read_text())


@pytest.mark.parametrize("name", DIGESTS)
def test_names_and_shapes_stay(name: str) -> None:
    with torch.device("meta"):
        state = Backbone(load_config(name)).state_dict()
    lines = [f"{key} {tuple(value.shape)} {value.dtype}" for key, value in state.items()]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == DIGESTS[name]
