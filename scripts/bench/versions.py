"""Times two checkouts of this repository against each other, in turn, in one run, to measure the effect of a change.

    git worktree add ../before HEAD~1
    python scripts/bench versions ../before --model nat_mini --mode eager --batch 1

Each checkout runs in a process of its own. A ratio above 1 means that this one is faster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.measure import append, setting

HERE = Path(__file__).resolve().parents[2]
MODELS = ["davit_tiny", "maxvit_rmlp_pico_rw_256", "nat_mini", "biformer_tiny", "crossformer_tiny", "litv2_s",
          "transnext_micro"]  # fmt: skip
MODES = ["eager", "training", "compiled"]
WORKER = """
import json, os, sys, time
import torch, zoo

zoo.__path__.append(os.getcwd())  # kernels and configurations lie beside the package until it is installed

def step():
    if training:
        run(images).square().mean().backward()
        model.zero_grad(set_to_none=True)
    else:
        with torch.inference_mode():
            run(images)

for line in sys.stdin:
    order = json.loads(line)
    if order:
        training = order["mode"] == "training"
        model = zoo.create_model(order["model"]).train(training)
        images = torch.randn(order["batch"], 3, order["size"], order["size"])
        run = torch.compile(model) if order["mode"] == "compiled" else model
        step()
    start = time.perf_counter()
    step()
    print("seconds", time.perf_counter() - start, flush=True)
"""


class Checkout:
    """A process that runs models of one checkout when told to."""

    def __init__(self, root: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(root)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, "-c", WORKER], cwd=root, env=environment, **pipes)

    def seconds(self, order: dict | None = None) -> float:
        """Time of one step, of the model that `order` describes or of the last one."""
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("seconds"):
                return float(line.split()[1])
        raise typer.BadParameter("the checkout's process ended: see its message above")


def main(
    before: Annotated[Path, typer.Argument(help="Folder of the other checkout.")],
    model: Annotated[list[str], typer.Option()] = MODELS,
    mode: Annotated[list[str], typer.Option(help=", ".join(MODES))] = MODES,
    batch: Annotated[list[int], typer.Option(min=1)] = [1, 8],  # noqa: B006 - typer copies it
    size: Annotated[int, typer.Option(min=32, help="Side of the images.")] = 224,
    seconds: Annotated[float, typer.Option(help="Of measuring, for each line.")] = 12.0,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Rows are appended.")] = None,
) -> None:
    """Print a table of medians and their ratio."""
    checkouts = {"before": Checkout(before.resolve()), "after": Checkout(HERE)}
    table = Table("model", "mode", "batch", "before ms", "after ms", "speed")
    for name in model:
        for how in mode:
            for images in batch:
                order = {"model": name, "mode": how, "batch": images, "size": size}
                times = {who: round(1e3 * value, 1) for who, value in race(checkouts, order, seconds).items()}
                speed = round(times["before"] / times["after"], 3)
                table.add_row(name, how, str(images), *map(str, times.values()), f"{speed:.3f}")
                if csv_file is not None:
                    measured = {"before_ms": times["before"], "after_ms": times["after"], "speed": speed}
                    append(csv_file, [{**setting("cpu"), **order, **measured}])
    Console().print(table)


def race(checkouts: dict[str, Checkout], order: dict, budget: float) -> dict[str, float]:
    """Median seconds of a step in each checkout, in turn."""
    once = sum(checkout.seconds(order) for checkout in checkouts.values())
    taken: dict[str, list[float]] = {who: [] for who in checkouts}
    for _ in range(max(5, int(budget / once))):
        for who, checkout in checkouts.items():
            taken[who].append(checkout.seconds())
    return {who: median(values) for who, values in taken.items()}
