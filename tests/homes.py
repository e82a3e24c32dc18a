"""Homes of the zoo for tests: empty, but for the C++ kernels, which take a while to build."""

from __future__ import annotations

from pathlib import Path

from zoo.kernels.build import cache


def new_home(path: Path) -> str:
    """A folder for `ZOO_HOME`."""
    for folder in (path, cache()):
        folder.mkdir(parents=True, exist_ok=True)
    if not (path / "kernels").exists():
        (path / "kernels").symlink_to(cache().absolute(), target_is_directory=True)
    return str(path)
