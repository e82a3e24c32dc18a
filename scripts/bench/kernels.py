"""Times the operations of `zoo.kernels` against their specification, PyTorch's own attention and other kernels.

    python scripts/bench kernels                                     # every operation and case of a real variant
    python scripts/bench kernels --operation window_attention --case maxvit --dtype float16 --mode forward
    python scripts/bench kernels --csv benchmarks/kernels.csv --markdown benchmarks/kernels.md --plot kernels.png

`kernel_runs.py` says how; on a GPU, `gpu_check.py` does the same in a budget of time. Exit status 1 if one of our own
kernels fails or is wrong.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.kernel_runs import MODES, Job, measure, with_kernels
from bench.kernel_tables import plot, show, write_markdown
from bench.measure import append, default_device

SIDES = (14, 28, 56, 112)
"""Maps of the plot, which shows the first case of each operation at these sizes."""


def main(
    operation: Annotated[list[str] | None, typer.Option(help="Names; all that have kernels of ours.")] = None,
    case: Annotated[str, typer.Option(help="Part of a case's name.")] = "",
    batch: Annotated[int | None, typer.Option(min=1, help="Images; 64 on a GPU, 4 on the CPU.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, float16; by device.")] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = default_device(),
    mode: Annotated[list[str], typer.Option(help="forward; training: with the gradients of all inputs.")] = MODES,
    rounds: Annotated[int, typer.Option(min=3, help="Timed rounds.")] = 20,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Rows are appended.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Tables for a reader, written anew.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Time against resolution, as a picture.")] = None,
) -> None:
    """Print a table of time, floor and memory of every provider."""
    dtypes = [getattr(torch, name) for name in dtype or (["bfloat16"] if device == "cuda" else ["float32"])]
    batch = batch or (64 if device == "cuda" else 4)
    rows, problems = [], []
    jobs = [
        Job(name, entry, way, batch, kind, device, rounds)
        for name in operation or with_kernels()
        for entry in import_module(f"zoo.kernels.{name}.cases").MODELS
        if case in entry.name
        for kind in dtypes
        for way in mode
    ]
    for job in jobs:
        rows += (found := list(measure(job, problems)))
        show(found)
        if csv_file is not None and found:
            append(csv_file, found)
    if markdown is not None:
        write_markdown(markdown, rows, "bench kernels")
    if plot_file is not None:
        first = {job.operation: job for job in reversed(jobs) if job.mode == mode[0] and job.dtype == dtypes[0]}
        curves = {name: curve(job, problems) for name, job in first.items()}
        plot(plot_file, curves)
        if csv_file is not None:
            append(csv_file, [row for found in curves.values() for row in found])
    for problem in problems:
        print(problem)
    raise typer.Exit(1 if any("OURS" in problem for problem in problems) else 0)


def curve(job: Job, problems: list[str]) -> list[dict]:
    """The rows of a case on maps of other sizes; regions and pooled maps grow with the map."""
    rows = []
    for side in SIDES:
        grown = {
            name: tuple(
                max(1, side * n // whole) for n, whole in zip(getattr(job.case, name), job.case.shape, strict=True)
            )
            for name in ("region", "pooled")
            if hasattr(job.case, name)
        }
        case = replace(job.case, name=f"{job.case.name} at {side}", shape=(side, side), **grown)
        rows += measure(replace(job, case=case), problems)
    return rows
