"""Time and memory of one forward pass against the size of the image: does the cost grow linearly with the pixels?

    python scripts/bench scaling --csv benchmarks/scaling.csv
    python scripts/bench scaling --model transnext_micro:fixed_pool_size=7 --size 224 --size 448

The growth is the exponent p of cost ~ pixels ** p between the smallest and the largest size: 1 is linear.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import zoo
from bench.measure import append, peak_memory, race, setting
from bench.models import infer

MODELS = [
    "davit_tiny",
    "maxvit_rmlp_pico_rw_256",
    "nat_mini",
    "dinat_mini",
    "dinat_s_tiny",
    "crossformer_tiny",
    "litv2_s",
    "biformer_tiny",
    "transnext_micro",
    "transnext_micro:fixed_pool_size=7",
]
SIZES = [224, 448, 896, 1344]


def main(
    model: Annotated[list[str], typer.Option(help="Variants, with `:option=number` for an option.")] = MODELS,
    size: Annotated[list[int], typer.Option(min=32, help="Sides of the square images, ascending.")] = SIZES,
    rounds: Annotated[int, typer.Option(min=3, help="Timed passes.")] = 3,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Rows are appended.")] = None,
) -> None:
    """Print a table of time and peak memory by size, and their growth."""
    rows = [measure(name, side, rounds) for name in model for side in size]
    show(rows, size)
    if csv_file is not None:
        append(csv_file, rows)


def measure(name: str, side: int, rounds: int) -> dict:
    """The row of one model and size."""
    variant, _, option = name.partition(":")
    key, _, number = option.partition("=")
    torch.manual_seed(0)
    model = zoo.create_model(variant, **({key: int(number)} if option else {})).eval()
    call = partial(infer, model, torch.randn(1, 3, side, side), torch.float32)
    return {
        **setting("cpu"),
        "model": name,
        "size": side,
        "median_ms": round(1e3 * race({name: call}, rounds, warmup=1)[name], 1),
        "peak_mb": round(peak_memory(call), 1),
    }


def show(rows: list[dict], sizes: list[int]) -> None:
    """Print milliseconds and megabytes by size, one line per model, with the growth of both."""
    table = Table("model", *(f"{side}" for side in sizes), "growth of time", "of memory")
    for start in range(0, len(rows), len(sizes)):
        line = rows[start : start + len(sizes)]
        cells = (f"{row['median_ms']:.0f} ms, {row['peak_mb']:.0f} MB" for row in line)
        table.add_row(line[0]["model"], *cells, *(f"{growth(line, key):.2f}" for key in ("median_ms", "peak_mb")))
    Console(width=180).print(table)


def growth(line: list[dict], key: str) -> float:
    """The exponent of pixels by which `key` grows from the smallest to the largest size."""
    first, last = line[0], line[-1]
    return math.log(last[key] / first[key]) / (2 * math.log(last["size"] / first["size"]))
