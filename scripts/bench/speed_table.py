"""The README's table of whole models on a CPU, against the fastest of the others: from `benchmarks/models.csv`."""

from __future__ import annotations

import csv
from itertools import groupby
from pathlib import Path

ROWS = Path(__file__).parents[2] / "benchmarks" / "models.csv"
MACHINE = ("device", "threads", "torch")
CELL = ("model", "dtype", "size", "batch")
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}

Row = dict[str, str]


def show() -> None:
    """Print a table for each machine, with one line per model."""
    with ROWS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["mode"] == "optimized" and row["pass"] == "forward"]
    for machine, found in groupby(sorted(rows, key=_machine), _machine):
        print_machine(dict(zip(MACHINE, machine, strict=True)), list(found))


def print_machine(machine: Row, rows: list[Row]) -> None:
    """Print the rows of a machine: a column for each precision, size and batch."""
    races: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:  # the last of equal ones wins
        races.setdefault(tuple(row[name] for name in CELL), {})[row["provider"]] = row
    columns = sorted({cell[1:] for cell in races}, key=lambda c: (list(PRECISIONS).index(c[0]), c[1], int(c[2])))
    titles = [f"{PRECISIONS[dtype]}, {size}, batch {batch}" for dtype, size, batch in columns]
    print(f"\n{machine['device']}, {machine['threads']} thread(s), torch {machine['torch'].split('+')[0]}:\n")
    print(f"| model | {' | '.join(titles)} |")
    print(f"|---|{'---:|' * len(titles)}")
    for model in sorted({cell[0] for cell in races}):
        print(f"| `{model}` | {' | '.join(value(races.get((model, *column), {})) for column in columns)} |")


def value(race: dict[str, Row]) -> str:
    """Our images per second, and our speed-up over the fastest rival, named: of the fastest passes."""
    times = {who: float(row["least_ms"] or row["median_ms"]) for who, row in race.items()}
    own = times.pop("zoo", None)
    if own is None or not times:
        return "-"
    rival = min(times, key=lambda who: times[who])
    return f"{1e3 * int(race['zoo']['batch']) / own:.1f}, {times[rival] / own:.2f}x {rival}"


def _machine(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in MACHINE)
