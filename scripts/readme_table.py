"""Writes the model table of README.md from the manifest and the counted sizes; `--check` only compares.

python scripts/readme_table.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

import zoo
from zoo.weights.manifest import Checkpoint

README = Path(__file__).parents[1] / "README.md"
OWN_LICENCE = "Apache-2.0"
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"


def table() -> str:
    """The table in Markdown, a row a variant."""
    lines = [
        "| model | params (M) | GMACs | size | top-1 (%) | licence of code, weights | weights |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for name in zoo.list_models():
        info = zoo.model_info(name)
        size = "x".join(map(str, info.img_size))
        counted = f"| `{name}` | {info.params / 1e6:.1f} | {info.gmacs:.1f} | {size} |"
        if not info.checkpoints:
            lines.append(f"{counted} - | {OWN_LICENCE} | none published |")
            continue
        first = info.checkpoints[0]
        top1 = f"{info.top1:.1f}" if info.top1 else "-"
        licences = f"{first.licence_code}, {first.licence_weights or 'not stated'}"
        lines.append(f"{counted} {top1} | {licences} | {where(first)} |")
    return "\n".join(lines)


def where(entry: Checkpoint) -> str:
    """A link to a checkpoint: its Hub repository, the file, or the page where a person can fetch it."""
    if entry.hub:
        return f"[{entry.hub}](https://huggingface.co/{entry.hub})"
    return f"[{'file' if entry.host == 'direct' else 'by hand'}]({entry.sources[0]})"


def rendered(text: str) -> str:
    """README.md with the table between its two markers replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    """Rewrite the table, or fail if it is out of date."""
    text = README.read_text()
    new = rendered(text)
    if "--check" in sys.argv:
        sys.exit(0 if new == text else "README.md: the model table is out of date; run scripts/readme_table.py")
    README.write_text(new)


if __name__ == "__main__":
    main()
