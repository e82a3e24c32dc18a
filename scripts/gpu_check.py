"""Minutes on a GPU, used well: does every Triton kernel compile, is it right, and how fast is it?

    python scripts/gpu_check.py                                        # compile, correctness and kernels in 280 seconds
    python scripts/gpu_check.py --phase families,peers:240,models --seconds 420   # `peers` takes 240 seconds at most
    python scripts/gpu_check.py --phase tables                         # from rows to benchmarks/, also elsewhere
    python scripts/gpu_check.py --device cpu --case "stage 3"          # a rehearsal with the C++ kernels

Everything is noted in OUT/rows.jsonl as it is found. A unit of work begins only if it fits into the time that is
left; what did not fit is listed. Each operation has a process of its own: an illegal access in a kernel ends that
process, not the run. Nothing is downloaded, and no optional dependency is needed. Exit status 1 if one of our kernels
fails.
"""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from gpu.conductor import Conductor
from gpu.run import Run
from gpu.summary import summarise, write_tables
from gpu.worker import PHASES

ROOT = Path(__file__).resolve().parents[1]
TABLES = "tables"
"""The phase that makes files of rows, for which no GPU is needed."""
MODELS = ["nat_tiny", "maxvit_tiny_tf_224", "biformer_tiny", "transnext_micro", "davit_tiny", "dinat_tiny", "litv2_s"]


def main(
    phase: Annotated[str, typer.Option(help=f"{', '.join(PHASES)}, {TABLES}; NAME:N takes N seconds at most.")] = (
        "compile:120,correctness:90,kernels"
    ),
    seconds: Annotated[float, typer.Option(min=1, help="For everything; it is kept.")] = 280,
    out: Annotated[Path, typer.Option(envvar="OUT", help="Folder of the rows and the log.")] = Path("outputs/gpu"),
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    operation: Annotated[list[str] | None, typer.Option(help="Names; all that have kernels of ours.")] = None,
    case: Annotated[str, typer.Option(help="Part of a case's name.")] = "",
    batch: Annotated[int | None, typer.Option(min=1, help="Images; 64 on a GPU, 2 on the CPU.")] = None,
    model: Annotated[list[str], typer.Option(help="Variants for the phase `models`.")] = MODELS,
    size: Annotated[int, typer.Option(min=32, help="Side of their images.")] = 224,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that compile.")] = max(1, (os.cpu_count() or 2) - 1),
) -> None:
    """Run phases in their order within the time, and print what they found."""
    deadline = time.time() + seconds
    phases = [phase_of(part, seconds) for part in phase.split(",")]
    known = sorted(path.parent.name for path in ROOT.glob("kernels/*/operator.py"))
    for name in operation or ():
        if name not in known:
            raise typer.BadParameter(f"there is no operation {name!r} with kernels, only {', '.join(known)}")
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    run = Run(
        out=str(out),
        started=datetime.now().isoformat(timespec="seconds"),
        deadline=deadline,
        device=device,
        operations=tuple(operation or known),
        case=case,
        batch=batch or (64 if device == "cuda" else 2),
        models=tuple(model),
        size=size,
        jobs=jobs,
    )
    try:
        Conductor(run).play([item for item in phases if item[0] != TABLES])
        if any(name == TABLES for name, _ in phases):
            write_tables(out, ROOT / "benchmarks")
    finally:
        status = summarise(out)
    raise typer.Exit(status)


def phase_of(part: str, seconds: float) -> tuple[str, float]:
    """NAME or NAME:N as a name and the most seconds."""
    name, _, most = part.partition(":")
    if name not in (*PHASES, TABLES):
        raise typer.BadParameter(f"there is no phase {name!r}, only {', '.join((*PHASES, TABLES))}")
    if most and not most.isdecimal():
        raise typer.BadParameter(f"{part!r}: expected NAME or NAME:SECONDS")
    return name, float(most or seconds)


if __name__ == "__main__":
    typer.run(main)
