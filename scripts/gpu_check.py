"""Checks in a few minutes on a GPU whether every Triton kernel compiles, is correct, and how fast it is.

    python scripts/gpu_check.py                                        # compile, correctness and kernels in 280 seconds
    python scripts/gpu_check.py --phase families:60,peers:220,models --seconds 420   # `peers` takes 220 seconds at most
    python scripts/gpu_check.py --phase tables                         # from rows to benchmarks/, also elsewhere
    python scripts/gpu_check.py --device cpu --case "stage 3"          # a rehearsal with the C++ kernels

Every result is written to OUT/rows.jsonl immediately. A unit of work starts only if it fits into the remaining time;
what did not fit is listed. Each operation runs in its own process: an illegal access in a kernel ends that process, not
the run, and a new process continues. Nothing is downloaded, and the only optional dependency is pytest, for `families`.
Exit status 1 if one of our kernels fails, 2 if a phase has done nothing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterable
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from gpu.conductor import Conductor
from gpu.run import Run
from gpu.summary import summarise, write_tables
from gpu.worker import PHASES
from zoo.config.catalog import shipped

ROOT = Path(__file__).resolve().parents[1]
TABLES = "tables"
"""The phase that writes tables from rows, for which no GPU is needed."""
MODELS = ["nat_tiny", "maxvit_tiny_tf_224", "biformer_tiny", "transnext_micro", "davit_tiny", "dinat_tiny", "litv2_s"]


class Device(str, Enum):
    """The device that runs the kernels."""

    CUDA = "cuda"
    CPU = "cpu"


def main(
    phase: Annotated[str, typer.Option(help=f"{', '.join(PHASES)}, {TABLES}; NAME:N or NAME:N% takes no longer.")] = (
        "compile:43%,correctness:32%,kernels"
    ),
    seconds: Annotated[float, typer.Option(min=1, max=86400, help="For everything; it is kept.")] = 280,
    out: Annotated[
        Path | None, typer.Option(envvar="OUT", file_okay=False, help="Folder of the rows, by default in outputs/.")
    ] = None,
    device: Annotated[Device, typer.Option(help="The CPU for a rehearsal.")] = Device.CUDA,
    operation: Annotated[list[str] | None, typer.Option(help="Names; all that have kernels of ours.")] = None,
    case: Annotated[str, typer.Option(help="Part of a case's name.")] = "",
    batch: Annotated[int | None, typer.Option(min=1, help="Images; 64 on a GPU, 2 on the CPU.")] = None,
    model: Annotated[list[str], typer.Option(help="Variants for the phase `models`.")] = MODELS,
    size: Annotated[int, typer.Option(min=32, help="Side of their images.")] = 224,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that compile.")] = max(1, (os.cpu_count() or 2) - 1),
) -> None:
    """Run the phases in order within the time limit, and print their results."""
    deadline, cpu = time.time() + seconds, device is Device.CPU
    phases = [phase_of(part, seconds) for part in phase.split(",")]
    known = sorted(path.parent.name for path in ROOT.glob("kernels/*/operator.py"))
    check_names(operation or (), known, "operation with kernels")
    check_names(model, shipped(), "variant")
    out = (out or Path("outputs/gpu-rehearsal" if cpu else "outputs/gpu")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    run = Run(
        out=str(out),
        started=datetime.now().isoformat(),
        deadline=deadline,
        device=device.value,
        operations=tuple(operation or known),
        case=case,
        batch=batch or (2 if cpu else 64),
        models=tuple(model),
        size=size,
        jobs=jobs,
    )
    asked, status = [item for item in phases if item[0] != TABLES], 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        Conductor(run).play(asked)
    finally:
        if asked:
            status = summarise(run.rows(), [name for name, _ in asked])
    if len(asked) < len(phases):
        status = write_tables(out, ROOT / "benchmarks") or status
    raise typer.Exit(status)


def stop(number: int, _: object) -> None:
    """End the workers, print the summary, and exit."""
    raise SystemExit(128 + number)


def phase_of(part: str, seconds: float) -> tuple[str, float]:
    """Parse NAME, NAME:N or NAME:N% as a name and a maximum number of seconds."""
    name, _, most = part.partition(":")
    if name not in (*PHASES, TABLES):
        raise typer.BadParameter(f"there is no phase {name!r}, only {', '.join((*PHASES, TABLES))}")
    number = most.removesuffix("%")
    if most and not number.isdecimal():
        raise typer.BadParameter(f"{part!r}: expected NAME, NAME:SECONDS or NAME:SHARE%")
    unit = seconds / 100 if most.endswith("%") else 1
    return name, float(number) * unit if most else seconds


def check_names(names: Iterable[str], known: Collection[str], what: str) -> None:
    """Refuse unknown names."""
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"there is no {what} {name!r}, only {', '.join(known)}")


if __name__ == "__main__":
    typer.run(main)
