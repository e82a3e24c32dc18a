"""How the rows of `kernels.py` are shown: on the screen, in Markdown, as a picture."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table


def show(rows: list[dict]) -> None:
    """Print one line per provider."""
    if not rows:
        return
    first = rows[0]
    title = f"{first['operation']}, {first['case']}, {first['mode']}, batch {first['batch']}, {first['dtype']}"
    table = Table("provider", "ms", "to ours", "floor ms", "of floor", "MB", "error")
    for row in rows:
        table.add_row(
            row["provider"],
            f"{row['median_ms']:.3f}",
            f"{row['ratio']:.2f}x",
            f"{row['floor_ms']:.3f}",
            f"{row['floor_share']:.0%}",
            f"{row['peak_mb']:.1f}",
            row["error"],
        )
    Console(width=120).print(f"\n{title}", table, sep="\n")


def write_markdown(path: Path, rows: list[dict], script: str) -> None:
    """For each machine, a table for each operation, mode and dtype: one row per case, one column per provider.

    Of repeated measurements on a machine, the last one counts.
    """
    lines: list[str] = []
    for machine in dict.fromkeys(map(_machine, rows)):
        device, torch, triton = machine
        own = [row for row in rows if _machine(row) == machine]
        lines += [
            *([""] if lines else []),
            f"Measured on {device}, torch {torch}, triton {triton}, {own[-1]['date']}, by `scripts/{script}`:",
            "median milliseconds and, in brackets, the ratio to the first column. The floor is the time in which",
            "each pass can read its tensors and write its results once. * was not captured as a CUDA graph, and has",
            "Python's time in it.",
        ]
        for heading in dict.fromkeys(map(_heading, own)):
            operation, mode, batch, dtype = heading
            table = _markdown([row for row in own if _heading(row) == heading])
            lines += ["", f"### {operation}, {mode}, batch {batch}, {dtype}", "", *table]
    if lines:
        path.write_text("\n".join(lines) + "\n")


def plot(path: Path, curves: dict[str, list[dict]]) -> None:
    """Plot median time against the side of the map: one panel per operation, one line per provider."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, fields = pyplot.subplots(1, len(curves), figsize=(4.5 * len(curves), 4), squeeze=False)
    for field, (operation, rows) in zip(fields[0], sorted(curves.items()), strict=True):
        for provider in dict.fromkeys(row["provider"] for row in rows):
            line = [(row["height"], row["median_ms"]) for row in rows if row["provider"] == provider]
            field.plot(*zip(*line, strict=True), marker="o", markersize=3, label=provider)
        sides = sorted({row["height"] for row in rows})
        field.set(title=operation, xlabel="side of the map", xscale="log", yscale="log")
        field.set_xticks(sides, [str(side) for side in sides])
        field.minorticks_off()
        field.grid(alpha=0.3)
        field.legend(fontsize=7)
    fields[0][0].set_ylabel("milliseconds")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def _machine(row: dict) -> tuple[str, str, str]:
    return row["device"], row["torch"], row["triton"]


def _heading(row: dict) -> tuple:
    return row["operation"], row["mode"], row["batch"], row["dtype"]


def _markdown(rows: list[dict]) -> list[str]:
    """One table; the first provider is ours, where there is one."""
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    lines = [
        f"| case | floor | {' | '.join(providers)} | share of the floor | MB, ours and the reference's |",
        f"|---|---:|{'---:|' * (len(providers) + 2)}",
    ]
    for case in dict.fromkeys(row["case"] for row in rows):
        found = {row["provider"]: row for row in rows if row["case"] == case}
        first = next(iter(found.values()))
        cells = [_cell(found[name], first) if name in found else "-" for name in providers]
        memory = ", ".join(
            f"{found[name]['peak_mb']:.1f}" for name in (first["provider"], "reference") if name in found
        )
        lines.append(
            f"| {case} | {first['floor_ms']:.3f} | {' | '.join(cells)} | {first['floor_share']:.0%} | {memory} |"
        )
    return lines


def _cell(row: dict, first: dict) -> str:
    star = "" if row["graph"] or row["host_ms"] == "" else "*"
    return f"{row['median_ms']:.3f}{star} ({row['median_ms'] / first['median_ms']:.2f}x)"
