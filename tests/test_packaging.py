"""The wheel holds the whole library, nothing top-level but `zoo`, and works from anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source") / "zoo"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "outputs"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True)
    return next(folder.glob("vision_zoo-*.whl"))


def test_the_wheel_holds_everything(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"zoo", wheel.name.rpartition("-py3")[0] + ".dist-info"}
    for path in ["zoo/weights_manifest.yaml", "zoo/cli/main.py", *_sources()]:
        assert path in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def _sources() -> list[str]:
    """Every module and configuration of the repository, as named inside the package."""
    kept = [
        *ROOT.glob("kernels/**/*.py"),
        *ROOT.glob("kernels/**/*.cpp"),
        *ROOT.glob("kernels/**/*.h"),
        *ROOT.glob("configs/*.py"),
        *ROOT.glob("configs/**/*.yaml"),
        *ROOT.glob("configs/classes/*.txt"),
    ]
    found = [f"zoo/{path.relative_to(ROOT)}" for path in kept]
    return found + [str(path.relative_to(ROOT)) for path in ROOT.glob("zoo/**/*.py")]


def test_the_installed_wheel_works_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    code = (
        "import zoo, zoo.kernels, torch, sys;"
        "assert zoo.__file__.startswith(sys.argv[1]) and zoo.kernels.__file__.startswith(sys.argv[1]);"
        "print(zoo.model_info('davit_tiny').top1, zoo.create_model('davit_tiny')(torch.zeros(1, 3, 32, 32)).shape)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code, str(site)]
    done = subprocess.run(command, cwd=elsewhere, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["82.8", "torch.Size([1,", "1000])"]
    installed = {path.name for path in site.iterdir()}
    assert not {"kernels", "configs", "scripts", "tests"} & installed
