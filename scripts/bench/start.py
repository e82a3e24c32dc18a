"""Times how long `pretrained=True` takes with a warm cache, against timm with the same variant and weights.

    python scripts/bench start --csv benchmarks/start.csv

No network is needed: weights are drawn, put into a cache of this script's own, and loaded from there by both, in turn,
in one process. Imports are not counted.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import timm
import typer
from huggingface_hub import constants
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

import zoo
from bench.measure import append, race, setting
from zoo.files import folder_of
from zoo.weights.manifest import default_checkpoint

MODELS = ("davit_tiny", "maxvit_tiny_tf_224")


def main(
    model: Annotated[tuple[str, str], typer.Option(help="Two variants that timm has as well.")] = MODELS,
    rounds: Annotated[int, typer.Option(min=3)] = 20,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Rows are appended.")] = None,
) -> None:
    """Print a table of seconds."""
    table = Table("model", "zoo ms", "timm ms", "ratio")
    for name in model:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["ZOO_HOME"] = f"{folder}/zoo"
            constants.HF_HUB_CACHE = f"{folder}/hub"
            calls = prepared(name, Path(folder))
            seconds = race(calls, rounds)
        ratio = seconds["zoo"] / seconds["timm"]
        table.add_row(name, *(f"{1e3 * seconds[who]:.0f}" for who in calls), f"{ratio:.2f}x")
        if csv_file is not None:
            times = {f"{who}_ms": round(1e3 * seconds[who], 1) for who in calls}
            append(
                csv_file, [{**setting("cpu", timm=timm.__version__), "model": name, **times, "ratio": round(ratio, 3)}]
            )
    Console().print(table)


def prepared(name: str, folder: Path) -> dict:
    """A call for each that makes the model with its weights; the files are written."""
    entry = default_checkpoint(name)
    state = timm.create_model(name).state_dict()
    published = folder_of(entry.id) / entry.file
    published.parent.mkdir(parents=True)
    save_file(state, folder / "weights.safetensors")
    save_file(state, published)
    overlay = {"file": str(folder / "weights.safetensors")}
    return {
        "zoo": lambda: zoo.create_model(name, pretrained=True),
        "timm": lambda: timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay),
    }
