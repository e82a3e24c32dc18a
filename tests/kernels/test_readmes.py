"""What the READMEs of the kernels show runs, and what they say of limits is what the kernels have."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

import zoo.kernels
from zoo.kernels.backends import WIDEST_HEAD
from zoo.kernels.native import MOST_KEYS

READMES = sorted(Path(zoo.kernels.__file__).parent.glob("*/README.md"))


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_the_call_runs(readme: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", readme.read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    assert isinstance(names["out"], torch.Tensor)
    assert torch.isfinite(names["out"]).all()


def test_limits_are_those_of_the_kernels() -> None:
    assert (WIDEST_HEAD, MOST_KEYS) == (128, 2**18)
    native = import_module("zoo.kernels.neighborhood_attention.native")
    assert (native.TALLEST, native.WIDEST) == (13, 15)
    for readme in READMES:
        if (readme.parent / "operator.py").exists():
            text = readme.read_text()
            assert f"at most {WIDEST_HEAD} channels" in text
            assert "2^18" in text or "13 x 15" in text
