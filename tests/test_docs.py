"""The documentation: every block of code runs, every file it shows is there, and the site builds without a warning."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.cbook
import pytest
import torch

from tests.homes import new_home
from tests.weights.server import Server, serving
from tests.weights.test_pretrained import entry_of, packed, path_of

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
SERVED = {"davit_tiny.msft_in1k": "davit_tiny_timm", "dinat_mini.in1k": "dinat_mini_hf"}


@pytest.fixture(scope="module")
def hub() -> Iterator[Server]:
    """A server that has the published checkpoints which the pages load, in their published form."""
    with serving() as server:
        for name, record in SERVED.items():
            entry = entry_of(name)
            server.files[path_of(entry)] = packed(record, entry)
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(page: Path, hub: Server, tmp_path: Path) -> None:
    if "```" not in page.read_text():
        return
    if page.stem == "export" and not callable(torch.export.Dim.DYNAMIC):
        pytest.skip("it exports for any size, which needs a newer PyTorch, as it says")
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as photo:
        (tmp_path / "photo.jpg").write_bytes(photo.read())
    (tmp_path / "photos").mkdir()
    for name in ("first.jpg", "second.jpg"):
        shutil.copy(tmp_path / "photo.jpg", tmp_path / "photos" / name)
    (tmp_path / "outputs").mkdir()
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), "ZOO_HOME": new_home(tmp_path / "zoo")}
    environment = {**os.environ, **own, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    command = [sys.executable, "-m", "tests.docs_page", str(page)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_page_is_in_the_contents() -> None:
    contents = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert str(page.relative_to(ROOT / "docs")) in contents, page


def test_no_picture_is_left_over() -> None:
    text = "".join(path.read_text() for path in (*PAGES, ROOT / "README.md"))
    for picture in (ROOT / "docs").rglob("*.png"):
        assert picture.name in text, picture
    for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", "".join(page.read_text() for page in PAGES)):
        name = Path(link).name
        assert any(ROOT.glob(f"docs/**/{name}")) or (ROOT / "benchmarks" / name).exists(), link
