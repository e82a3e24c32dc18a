"""Compiles every Triton kernel of every operation for GPUs from T4 to B200, without one: does it fit?

    python scripts/bench aot --csv benchmarks/aot.csv
    python scripts/bench aot --operation window_attention --target sm_75 --case stage --details window.csv

The launches of a forward and a backward pass of each case of a real variant, and of some edge cases, are recorded and
compiled as at run time. Exit status 1 if a kernel does not compile, takes more shared memory than the GPU has, or, with
heads of at most 64 channels on sm_80 or later, spills more than a few registers.
"""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import date
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import torch
import triton
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import zoo
from bench.aot_compile import USAGE, Kernel, Target, compiled, recorded
from bench.measure import append
from zoo.kernels.backends import WIDEST_EXACT_HEAD

TARGETS = ["sm_75", "sm_80", "sm_90", "sm_100", "gfx942"]
DTYPES = ["float16", "bfloat16", "float32", "tf32"]
FROM_AMPERE = ("bfloat16", "tf32")
LITTLE = 65536
"""Bytes of shared memory; too few for float32 heads of more than `WIDEST_EXACT_HEAD` channels."""
AWKWARD_CASES = 3
"""How many edge cases of an operation are compiled, the widest heads first."""
MOST = ("registers", "spills", "shared", "instructions")
"""Columns of which a summary contains the maximum."""
NARROW = 64
"""The widest heads for which at most SPARE may be spilled."""
SPARE = 128
"""Bytes per thread: values that stay the same from image to image, which are reloaded from the L1 cache."""


def main(
    operation: Annotated[list[str] | None, typer.Option(help="Operations; all that have Triton kernels.")] = None,
    case: Annotated[str, typer.Option(help="Part of a case's name.")] = "",
    target: Annotated[list[str], typer.Option(help="sm_75, sm_86, gfx942, ...")] = TARGETS,
    dtype: Annotated[list[str], typer.Option(help="float16, float32; bfloat16, tf32: not on sm_75.")] = DTYPES,
    batch: Annotated[int, typer.Option(min=1)] = 64,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that compile.")] = 2,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Rows are appended, by operation and target.")] = None,
    details: Annotated[Path | None, typer.Option(help="CSV file to which every variant is appended.")] = None,
) -> None:
    """Print registers, spills and shared memory of every kernel on every target."""
    if os.environ.get("TRITON_INTERPRET"):
        raise typer.BadParameter("unset TRITON_INTERPRET: interpreted kernels are not compiled")
    wanted, broken = [], []
    for name in operation or with_triton():
        try:
            wanted += variants(name, case, target, dtype, batch)
        except Exception as error:  # continue with the other operations
            broken.append(f"does not run: {name}: {type(error).__name__}: {error}")
    rows = compile_all(wanted, jobs)
    show(summary(rows, "kernel"))
    for path, found in ((csv_file, summary(rows, "operation")), (details, rows)):
        if path is not None and found:
            append(path, found)
    for row in rows:
        if row["problem"]:
            who = f"{row['kernel']} on {row['target']}, {row['dtype']}, {row['options']}, {row['case']}"
            broken.append(f"{row['problem']}: {who}: {row['error']}")
    for problem in broken:
        print(problem)
    raise typer.Exit(1 if broken else 0)


def with_triton() -> list[str]:
    """The operations that have Triton kernels."""
    folders = sorted(Path(zoo.kernels.__file__).parent.glob("*/operator.py"))
    return [f.parent.name for f in folders if find_spec(f"zoo.kernels.{f.parent.name}.triton")]


def variants(operation: str, part: str, targets: list[str], dtypes: list[str], batch: int) -> list[tuple]:
    """(operation, kernel, target, dtype, cases): each variant of a kernel once, with the cases that launch it."""
    cases_of = import_module(f"zoo.kernels.{operation}.cases")
    awkward = sorted(cases_of.AWKWARD, key=lambda case: -case.head_dim)[:AWKWARD_CASES]
    cases = [case for case in (*cases_of.MODELS, *awkward) if part in case.name]
    found: dict[tuple[Kernel, Target, str], list] = defaultdict(list)
    for case in track(cases, f"{operation}: recording"):
        for dtype in dtypes:
            aims = [aim for aim in map(Target, targets) if dtype not in FROM_AMPERE or aim.name != "sm_75"]
            aims = [aim for aim in aims if dtype != "tf32" or aim.cuda]
            wide = dtype == "float32" and case.head_dim > WIDEST_EXACT_HEAD
            aims = [aim for aim in aims if not wide or aim.shared > LITTLE]
            launches = recorded(operation, case, dtype, [aim.generation for aim in aims], batch)
            for aim in aims:
                for kernel in dict.fromkeys(launches[aim.generation]):
                    kernel = kernel if not aim.cuda else replace(kernel, small=())
                    found[kernel, aim, dtype].append(case)
    return [(operation, *key, cases) for key, cases in found.items()]


def compile_all(wanted: list[tuple], jobs: int) -> list[dict]:
    """A row for each variant."""
    kernels, targets = [entry[1] for entry in wanted], [entry[2] for entry in wanted]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        results = pool.map(compiled, kernels, targets)
        results = list(track(results, f"compiling {len(wanted)} variants", total=len(wanted)))
    return [row_of(*entry, result) for entry, result in zip(wanted, results, strict=True)]


def row_of(operation: str, kernel: Kernel, target: Target, dtype: str, cases: list, result: dict) -> dict:
    """The row of one variant of a kernel."""
    narrow = min(case.head_dim for case in cases) <= NARROW
    if result["error"]:
        problem = "does not compile"
    elif result["shared"] > target.shared:
        problem = "too much shared memory"
    elif result["spills"] > SPARE and narrow and target.cuda and target.generation >= 80:
        problem = "spills"
    else:
        problem = ""
    return {
        "date": date.today().isoformat(),
        "device": "none, ahead of time",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "zoo": zoo.__version__,
        "operation": operation,
        "kernel": f"{kernel.module.removeprefix('zoo.kernels.')}.{kernel.name}",
        "case": "; ".join(case.name for case in cases),
        "dtype": dtype,
        "target": target.name,
        "options": " ".join(f"{name}={value}" for name, value in kernel.options),
        **{name: result[name] for name in USAGE},
        "limit": target.shared,
        "problem": problem,
        "error": result["error"],
    }


def summary(rows: list[dict], by: str) -> list[dict]:
    """One row per kernel or operation, and target: the maximum over its variants, and how many have problems."""
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for row in rows:
        groups[row[by], row["target"]].append(row)
    common = ("date", "torch", "triton", "zoo", by, "target", "limit")
    return [
        {name: group[0][name] for name in common}
        | {"variants": len(group), "problems": sum(bool(row["problem"]) for row in group)}
        | {name: max((row[name] for row in group if row[name] != ""), default="") for name in MOST}
        for _, group in sorted(groups.items(), key=lambda item: (item[0][0], listed(item[0][1])))
    ]


def show(totals: list[dict]) -> None:
    """Print one line per kernel and target."""
    table = Table("kernel", "target", "variants", "registers", "spills (B)", "shared (KiB)", "of", "problems")
    for row in totals:
        numbers = (row["variants"], row["registers"], row["spills"])
        sizes = (f"{(row['shared'] or 0) / 1024:.1f}", f"{row['limit'] / 1024:.0f}")
        table.add_row(row["kernel"], row["target"], *map(str, numbers), *sizes, str(row["problems"] or ""))
    Console(width=140).print(table)


def listed(name: str) -> tuple[int, str]:
    """Sorts targets as they are listed."""
    return (TARGETS.index(name) if name in TARGETS else len(TARGETS), name)
