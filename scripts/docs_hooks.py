"""Lets the documentation show pictures of benchmarks where the benchmarks put them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PLOTS = Path(__file__).parents[1] / "benchmarks"


def on_files(files: Files, config: Any) -> Files:
    """Add the plots in `benchmarks/` to the site, as `benchmarks/<name>.png`."""
    for path in sorted(PLOTS.glob("*.png")):
        files.append(File.generated(config, f"benchmarks/{path.name}", abs_src_path=str(path)))
    return files
