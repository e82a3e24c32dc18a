"""The rows of a folder, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path


def rows_of(out: Path) -> list[dict]:
    """All rows, of one run or of several, without the lines that were torn by a full disk or the end of a process."""
    path = out / "rows.jsonl"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    found = map(_row_of, filter(None, lines))
    return [row for row in found if row is not None]


def _row_of(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and {"kind", "run"} <= row.keys() else None
