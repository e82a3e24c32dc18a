"""What a run found: printed at its end, and its rows as the tables and CSV files of `benchmarks/`."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

KEPT = {"kernels": "kernels.csv", "models": "models.csv", "correctness": "correctness.csv", "profile": "profile.csv"}
"""Kinds of rows that are kept with the project."""
MACHINE = ("date", "device", "torch", "triton", "zoo")
"""What rows say of the machine, where they do not say more."""
BAD = ("wrong", "failed")


def rows_of(out: Path) -> list[dict]:
    """All rows of a folder, of one run or of several; a line that was torn when a process was killed is left out."""
    path, rows = out / "rows.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: left out a torn line of {len(line)} characters")
    return rows


def summarise(out: Path) -> int:
    """Print the last run: times, what did not fit, and what is wrong; 1 if something is wrong, else 0."""
    rows = rows_of(out)
    rows = [row for row in rows if row["run"] == rows[-1]["run"]]
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
    for (phase, operation), cases in _skipped(units).items():
        print(f"did not fit: {phase}, {operation}: {'; '.join(cases)}")
    bad = [unit for unit in units if unit["status"] in BAD]
    for unit in bad:
        print(f"{unit['status'].upper()}: {_name(unit)}: {unit['note']}")
    return 1 if bad else 0


def write_tables(out: Path, folder: Path) -> None:
    """Append rows to the CSV files of `folder`, those that are not there yet, and write `gpu.md` from the kernels'."""
    from kernel_tables import write_markdown
    from measure import append

    rows = rows_of(out)
    machines = {row["run"]: row for row in rows if row["kind"] == "machine"}
    for kind, name in KEPT.items():
        found = [_with_machine(row, machines) for row in rows if row["kind"] == kind]
        known = _known(folder / name)
        new = [row for row in found if tuple(map(str, row.values())) not in known]
        if new:
            append(folder / name, new)
    write_markdown(folder / "gpu.md", [row for row in rows if row["kind"] == "kernels"])


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


def _skipped(units: list[dict]) -> dict[tuple[str, str], list[str]]:
    """What did not fit, by phase and operation."""
    found: dict[tuple[str, str], list[str]] = {}
    for unit in units:
        if unit["status"] in ("skipped", "stopped"):
            found.setdefault((unit["phase"], unit["operation"]), []).append(f"{unit['case']} ({unit['provider']})")
    return found


def _name(unit: dict) -> str:
    return ", ".join(filter(None, (unit["phase"], unit["operation"], unit["case"], unit["provider"])))


def _kernel_line(row: dict) -> str:
    host = f"{1e3 * row['host_ms']:7.1f}" if row["host_ms"] != "" else "      -"
    return (
        f"{row['operation'][:12]:12} {row['case'][:36]:36} {row['mode']:8} {row['provider'][:24]:24} "
        f"{1e3 * row['median_ms']:9.1f} us  eager {1e3 * row['eager_ms']:9.1f}  host {host}  "
        f"floor {1e3 * row['floor_ms']:7.1f}  share {row['floor_share']:.0%}  ratio {row['ratio']:.2f}"
    )


def _rate(row: dict) -> str:
    return f"{row['images_per_second']:9.1f} images/s  {row['peak_mb']:8.0f} MB"
