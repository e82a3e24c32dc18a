"""The README's table of whole models on a CPU: the last row of `benchmarks/models.csv` for each cell."""

from __future__ import annotations

import csv
from pathlib import Path

ROWS = Path(__file__).parents[2] / "benchmarks" / "models.csv"
PEERS = ("published", "timm")
BATCHES = ("1", "8")
COLUMNS = (
    ("images/s", "eager", "forward", "images_per_second"),
    ("forward", "eager", "forward", "median_ms"),
    ("forward, compiled", "compiled", "forward", "median_ms"),
    ("training", "eager", "training", "median_ms"),
    ("training, compiled", "compiled", "training", "median_ms"),
    ("memory, forward", "eager", "forward", "peak_mb"),
    ("memory, training", "eager", "training", "peak_mb"),
)

Cells = dict[tuple[str, ...], dict[str, str]]


def show() -> None:
    """Print one line per model that was measured against published code or timm."""
    with ROWS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dtype"] == "float32"]
    cells: Cells = {(r["model"], r["provider"], r["mode"], r["pass"], r["batch"]): r for r in rows}
    print(f"| model | against | {' | '.join(title for title, *_ in COLUMNS)} |")
    print(f"|---|---|{'---:|' * len(COLUMNS)}")
    for model in sorted({row["model"] for row in rows}):
        peer = next((who for who in PEERS if (model, who, "eager", "forward", "1") in cells), None)
        if peer is not None:
            values = (value(cells, model, peer, *column[1:]) for column in COLUMNS)
            print(f"| `{model}` | {peer} | {' | '.join(values)} |")


def value(cells: Cells, model: str, peer: str, mode: str, kind: str, column: str) -> str:
    """Batch 1 and 8: our images per second, our speed-up, or our share of the memory."""
    texts = []
    for batch in BATCHES:
        own, other = (cells.get((model, who, mode, kind, batch)) for who in ("zoo", peer))
        if own is None or other is None:
            texts.append("-")
        elif column == "images_per_second":
            texts.append(f"{float(own[column]):.1f}")
        else:
            ratio = float(other[column]) / float(own[column])
            texts.append(f"{ratio:.2f}x" if column == "median_ms" else f"{1 / ratio:.2f}x")
    return ", ".join(texts)
