"""What the README shows is true today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import zoo

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"


def test_the_example_file_trains(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[1])
    model = zoo.create_model(str(path), num_classes=10)
    model(torch.randn(2, 3, 97, 211)).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_example_of_kernels_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(next(code for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "use_backend" in code), {})
    assert capsys.readouterr().out == "neighborhood_attention: native, torch.float32 on the CPU\n"


def test_the_model_table_has_every_model() -> None:
    """What its rows say is held by test_manifest.py, where sizes and costs are counted."""
    assert re.findall(r"^\| `(\w+)` \|", TEXT.partition(BEGIN)[2].partition(END)[0], re.MULTILINE) == zoo.list_models()


def test_the_scripts_it_names_exist() -> None:
    for name in re.findall(r"scripts/\w+\.(?:sh|py)", TEXT):
        assert (ROOT / name).is_file(), name
