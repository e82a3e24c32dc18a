"""What a run found: printed at its end, and its rows as the tables and CSV files of `benchmarks/`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

KEPT = {"kernels": "kernels.csv", "models": "models.csv", "correctness": "correctness.csv", "profile": "profile.csv"}
"""Kinds of rows that are kept with the project."""
BAD = ("wrong", "failed")


def rows_of(out: Path) -> list[dict]:
    """All rows of a run."""
    path = out / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summarise(out: Path) -> int:
    """Print a run: what is wrong first, then times; 1 if something is wrong, else 0."""
    rows = rows_of(out)
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
    """Append a run's rows to the CSV files of `folder`, and write the tables of its kernels to `gpu.md` there."""
    from kernel_tables import write_markdown
    from measure import append

    rows = rows_of(out)
    machine = next(({k: v for k, v in row.items() if k != "kind"} for row in rows if row["kind"] == "machine"), {})
    common = {name: machine[name] for name in ("date", "device", "torch", "zoo") if name in machine}
    for kind, name in KEPT.items():
        found = [{k: v for k, v in row.items() if k != "kind"} for row in rows if row["kind"] == kind]
        if found:
            append(folder / name, [row if "device" in row else common | row for row in found])
    kernels = [row for row in rows if row["kind"] == "kernels"]
    write_markdown(folder / "gpu.md", kernels)


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
