"""Benchmarks of operations, whole models, training and other versions; compilation for absent GPUs; tables.

python scripts/bench --help
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # a folder run as a script is not a package

import typer  # noqa: E402

from bench import aot, kernels, models, scaling, start, tables, training, versions  # noqa: E402

app = typer.Typer(no_args_is_help=True, add_completion=False)
for module in (kernels, models, scaling, start, training, versions, aot, tables):
    app.command(module.__name__.rpartition(".")[2])(module.main)

app()
