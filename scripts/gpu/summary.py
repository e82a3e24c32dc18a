"""What a run found: printed at its end, and its rows as the tables and CSV files of `benchmarks/`."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from gpu.rows import rows_of

KEPT = {"kernels": "kernels.csv", "models": "models.csv", "correctness": "correctness.csv", "profile": "profile.csv"}
"""Kinds of rows that are kept with the project."""
MACHINE = ("date", "device", "torch", "triton", "zoo")
"""What rows say of the machine, where they do not say more."""
BAD = ("wrong", "failed", "slow")
LEFT = ("skipped", "stopped")
"""What was not done, or not to its end, for want of time."""
WRONG, NOTHING_DONE = 1, 2
"""Exit statuses."""


def summarise(rows: list[dict], phases: list[str]) -> int:
    """Print the rows of a run: times, what did not fit, and what is wrong; the exit status.

    It is 0 if all is well, 1 if something is wrong, 2 if a phase that was asked for has finished no unit of work.
    """
    units = [row for row in rows if row["kind"] == "unit"]
    print()
    for phase in dict.fromkeys(unit["phase"] for unit in units):
        counts = Counter(unit["status"] for unit in units if unit["phase"] == phase)
        print(f"{phase}: {', '.join(f'{count} {status}' for status, count in counts.items())}")
    for row in rows:
        if row["kind"] == "kernels":
            print(_kernel_line(row))
        elif row["kind"] == "models":
            print(f"{row['model']:20} {row['mode']:9} {row['pass']:9} {row['provider']:20} {_rate(row)}")
    for (phase, operation), cases in _left_out(units).items():
        print(f"did not fit: {phase}, {operation}: {'; '.join(cases)}")
    bad = [unit for unit in units if unit["status"] in BAD]
    for unit in bad:
        print(f"{unit['status'].upper()}: {_name(unit)}: {unit['note']}")
    idle = [name for name in phases if not any(u["phase"] == name and u["status"] not in LEFT for u in units)]
    if idle:
        print(f"NOTHING DONE: {', '.join(idle)}: no such case, or too little time")
    return WRONG if bad else NOTHING_DONE if idle else 0


def write_tables(out: Path, folder: Path, on: str = "cuda") -> int:
    """Append rows to the CSV files of `folder`, those that are not there yet, and write `gpu.md` from the kernels'.

    Rows of runs on such a device alone. The exit status: 2 if there are none, 1 if a file does not take them.
    """
    from bench.kernel_tables import write_markdown
    from bench.measure import append

    rows = rows_of(out)
    machines = {row["run"]: row for row in rows if row["kind"] == "machine" and row.get("on") == on}
    rows = [row for row in rows if row["run"] in machines]
    if not rows:
        print(f"{out}: has no rows of a run on {on}")
        return NOTHING_DONE
    status = 0
    for kind, name in KEPT.items():
        found = [_with_machine(row, machines) for row in rows if row["kind"] == kind]
        known = _known(folder / name)
        new = [row for row in found if tuple(map(str, row.values())) not in known]
        try:
            if new:
                append(folder / name, new)
        except (OSError, ValueError) as error:
            print(f"{kind}: {error}")
            status = WRONG
    kernels = [row for row in rows if row["kind"] == "kernels" and "programs x" not in row["provider"]]
    write_markdown(folder / "gpu.md", kernels, "gpu_check.py")
    return status


def _with_machine(row: dict, machines: dict[str, dict]) -> dict:
    """A row as it is kept: with the device and its software."""
    machine = machines.get(row["run"], {})
    common = {name: machine.get(name, "") for name in MACHINE} if "device" not in row else {}
    return common | {name: value for name, value in row.items() if name not in ("kind", "run")}


def _known(path: Path) -> set[tuple[str, ...]]:
    """The rows of a CSV file."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return set(map(tuple, csv.reader(file)))


def _left_out(units: list[dict]) -> dict[tuple[str, str], list[str]]:
    """What did not fit, by phase and operation."""
    found: dict[tuple[str, str], list[str]] = {}
    for unit in units:
        if unit["status"] in LEFT:
            found.setdefault((unit["phase"], unit["operation"]), []).append(f"{unit['case']} ({unit['provider']})")
    return found


def _name(unit: dict) -> str:
    return ", ".join(filter(None, (unit["phase"], unit["operation"], unit["case"], unit["provider"])))


def _kernel_line(row: dict) -> str:
    star = " " if row["graph"] or row["host_ms"] == "" else "*"  # not captured: with Python's time
    host = f"{1e3 * row['host_ms']:7.1f}" if row["host_ms"] != "" else "      -"
    return (
        f"{row['operation'][:12]:12} {row['case'][:36]:36} {row['mode']:8} {row['provider'][:24]:24} "
        f"{1e3 * row['median_ms']:9.1f} us{star} eager {1e3 * row['eager_ms']:9.1f}  host {host}  "
        f"floor {1e3 * row['floor_ms']:7.1f}  share {row['floor_share']:.0%}  ratio {row['ratio']:.2f}"
    )


def _rate(row: dict) -> str:
    memory = "" if row["peak_mb"] == "" else f"{row['peak_mb']:8.0f} MB"
    return f"{row['images_per_second']:9.1f} images/s  {memory}"
