"""Times whole models against timm's of the same name: throughput and peak memory, eager and compiled.

    python scripts/bench_models.py                              # davit_tiny and maxvit_tiny_tf_224, batch 1 and 8
    python scripts/bench_models.py --model davit_base --batch 4 --mode eager --csv benchmarks/models.csv

Both models run in one process, in turn, so that a change of the machine's speed hits both; medians are compared.
Peak memory is the most that one forward pass holds in tensors at once, beside the model and the images.
"""

from __future__ import annotations

import csv
import platform
import statistics
import time
from datetime import date
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

import zoo

PROVIDERS = ("zoo", "timm")


def main(
    model: Annotated[list[str], typer.Option(help="Names that the zoo and timm share.")] = [  # noqa: B006
        "davit_tiny",
        "maxvit_tiny_tf_224",
    ],
    batch: Annotated[list[int], typer.Option(min=1)] = [1, 8],  # noqa: B006
    mode: Annotated[list[str], typer.Option(help="eager, compiled")] = ["eager", "compiled"],  # noqa: B006
    size: Annotated[int, typer.Option(min=32, help="Side of the square images.")] = 224,
    rounds: Annotated[int, typer.Option(min=3, help="Timed passes of each model.")] = 20,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Rows are appended.")] = None,
) -> None:
    """Print a table of throughput and peak memory, ours against timm's."""
    rows = [entry for n in model for m in mode for b in batch for entry in measure(n, m, b, size, rounds)]
    show(rows)
    if csv_file is not None:
        append(csv_file, rows)


def measure(name: str, mode: str, batch: int, size: int, rounds: int) -> list[dict]:
    """The rows of one model, mode and batch: ours and timm's."""
    torch.compiler.reset()
    models = {provider: build(provider, name, mode) for provider in PROVIDERS}
    images = torch.randn(batch, 3, size, size)
    seconds = race(models, images, rounds)
    return [
        {
            "date": date.today().isoformat(),
            "device": device(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "zoo": zoo.__version__,
            "model": name,
            "provider": provider,
            "mode": mode,
            "batch": batch,
            "size": size,
            "median_ms": round(1e3 * seconds[provider], 2),
            "images_per_second": round(batch / seconds[provider], 2),
            "ratio": round(seconds["timm"] / seconds[provider], 3),
            "peak_mb": round(peak_memory(models[provider], images), 1),
        }
        for provider in PROVIDERS
    ]


def show(rows: list[dict]) -> None:
    """Print rows, ours beside timm's."""
    table = Table("model", "batch", "mode", "zoo img/s", "timm img/s", "speed", "zoo MB", "timm MB", "memory")
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        table.add_row(
            ours["model"],
            str(ours["batch"]),
            ours["mode"],
            *(f"{entry['images_per_second']:.1f}" for entry in (ours, theirs)),
            f"{ours['ratio']:.2f}x",
            *(f"{entry['peak_mb']:.0f}" for entry in (ours, theirs)),
            f"{ours['peak_mb'] / theirs['peak_mb']:.2f}x",
        )
    Console(width=120).print(table)


def build(provider: str, name: str, mode: str) -> torch.nn.Module:
    """The model `name` of "zoo" or "timm", in evaluation mode."""
    torch.manual_seed(0)
    model = (zoo if provider == "zoo" else timm).create_model(name).eval()
    return torch.compile(model, dynamic=False) if mode == "compiled" else model


@torch.inference_mode()
def race(models: dict[str, torch.nn.Module], images: torch.Tensor, rounds: int, warmup: int = 3) -> dict[str, float]:
    """Median seconds of a forward pass of each model, passes in turn."""
    seconds: dict[str, list[float]] = {who: [] for who in models}
    for i in range(rounds + warmup):
        for who, model in models.items():
            start = time.perf_counter()
            model(images)
            if i >= warmup:
                seconds[who].append(time.perf_counter() - start)
    return {who: statistics.median(values) for who, values in seconds.items()}


@torch.inference_mode()
def peak_memory(model: torch.nn.Module, images: torch.Tensor) -> float:
    """Megabytes, from the allocator's own record of one forward pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        model(images)
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns()))
    return max(accumulate(sizes)) / 2**20


def device() -> str:
    """The processor's own name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def append(path: Path, rows: list[dict]) -> None:
    """Add rows to a CSV file, with a header if it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    typer.run(main)
