"""The model table of README.md, from the manifest and the counted sizes."""

from __future__ import annotations

from pathlib import Path

import zoo
from zoo.models.info import ModelInfo
from zoo.weights.manifest import Checkpoint

README = Path(__file__).parents[2] / "README.md"
OWN_LICENCE = "Apache-2.0"
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"


def table() -> str:
    """The table in Markdown, a row a variant."""
    lines = [
        "| model | params (M) | GMACs | size | top-1 (%) | licence of code, weights | weights |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    return "\n".join([*lines, *(row(zoo.model_info(name)) for name in zoo.list_models())])


def row(info: ModelInfo) -> str:
    """A variant's row."""
    size = "x".join(map(str, info.img_size))
    counted = f"| `{info.name}` | {info.params / 1e6:.1f} | {info.gmacs:.1f} | {size} |"
    if not info.checkpoints:
        return f"{counted} - | {OWN_LICENCE} | none published |"
    first = info.checkpoints[0]
    top1 = f"{info.top1:.1f}" if info.top1 else "-"
    licences = f"{first.licence_code}, {first.licence_weights or 'not stated'}"
    return f"{counted} {top1} | {licences} | {where(first)} |"


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


def write() -> None:
    """Rewrite the table."""
    README.write_text(rendered(README.read_text()))
