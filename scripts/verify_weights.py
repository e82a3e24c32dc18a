"""Downloads every published checkpoint, records its size and checksum, loads it and measures its accuracy.

    python scripts/verify_weights.py                                   # all that a machine can fetch
    python scripts/verify_weights.py 'dinat_*' --imagenet ~/imagenet/val --device cuda

Size and sha256 of a new file are added to `weights_manifest.yaml`; a file that differs from its entry is reported, and
the entry stays unchanged. Each checkpoint is loaded strictly. With ImageNet's validation images (a folder a class)
top-1 is measured with the transform of the manifest, and a row with it and the published figure goes to
`benchmarks/accuracy.csv`. Finished work is not repeated, and a failure does not stop the run. Exit status 1 if there
was any failure.
"""

from __future__ import annotations

import csv
import fnmatch
import re
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer
from rich.console import Console
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.utils import AverageMeter, accuracy

import zoo
from bench.measure import append, default_device, setting
from zoo.weights import manifest
from zoo.weights.download import sha256_of
from zoo.weights.manifest import Checkpoint, checkpoints
from zoo.weights.store import fetch, original

ACCURACY = Path(__file__).parents[1] / "benchmarks" / "accuracy.csv"
console = Console()


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Checkpoints, shell-style; all if none.")] = None,
    imagenet: Annotated[Path | None, typer.Option(help="ImageNet's validation images, a folder a class.")] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = default_device(),
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 4,
) -> None:
    """Fetch, record, load and measure."""
    failed = 0
    for entry in checkpoints():
        if not any(fnmatch.fnmatch(entry.id, name) for name in names or ["*"]):
            continue
        if not entry.by_machine and original(entry) is None:
            console.print(f"{entry.id}: to fetch by hand, see `zoo weights import`")
            continue
        try:
            console.print(f"{entry.id}: {verified(entry)}")
            if imagenet is not None and entry.num_classes == 1000 and entry.id not in measured():
                append(ACCURACY, [row(entry, top1(entry, imagenet, device, batch, workers), device)])
        except Exception as error:  # after any failure, continue with the others
            failed += 1
            console.print(f"{entry.id}: {type(error).__name__}: {error}", style="red", markup=False)
    if failed:
        raise typer.Exit(1)


def verified(entry: Checkpoint) -> str:
    """Fetch and load a checkpoint, and record its size and checksum if they are missing. Returns what was found."""
    path = fetch(entry)
    size, sha256 = path.stat().st_size, sha256_of(path)
    zoo.create_model(entry.id, pretrained=True)
    if entry.sha256 is None:
        manifest.MANIFEST.write_text(recorded(manifest.MANIFEST.read_text(), entry.id, size, sha256))
        return f"loads; {size} bytes, sha256 {sha256}, written down"
    return "loads, and is the file that was seen before"


def recorded(text: str, name: str, size: int, sha256: str) -> str:
    """The manifest's text with the size and checksum of one checkpoint.

    Raises:
        ValueError: if there is no such entry or it already has them.
    """
    block = re.compile(rf"^  {re.escape(name)}:\n(?:    .*\n)+", re.MULTILINE)
    found = block.search(text)
    if found is None or "    sha256: null\n    size: null\n" not in found[0]:
        raise ValueError(f"{name}: the manifest has no such entry without a checksum")
    filled = found[0].replace("sha256: null\n    size: null", f"sha256: {sha256}\n    size: {size}")
    return text[: found.start()] + filled + text[found.end() :]


def measured() -> set[str]:
    """The checkpoints whose accuracy is in the file."""
    if not ACCURACY.exists():
        return set()
    with ACCURACY.open(newline="") as file:
        return {line["checkpoint"] for line in csv.DictReader(file)}


@torch.inference_mode()
def top1(entry: Checkpoint, imagenet: Path, device: str, batch: int, workers: int) -> float:
    """The percentage of validation images whose top prediction is right."""
    model = zoo.create_model(entry.id, pretrained=True).eval().to(device)
    config = resolve_data_config({}, model=model)
    loader = create_loader(
        create_dataset("", imagenet),
        input_size=config["input_size"],
        batch_size=batch,
        use_prefetcher=False,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        num_workers=workers,
    )
    meter = AverageMeter()
    for images, labels in loader:
        (right,) = accuracy(model(images.to(device)), labels.to(device))
        meter.update(right.item(), len(labels))
    return meter.avg


def row(entry: Checkpoint, found: float, device: str) -> dict[str, object]:
    """A line of the accuracy file."""
    published = {"top1_published": entry.top1, "top1_timm": entry.top1_timm, "top1_measured": round(found, 3)}
    return {**setting(device, timm=timm.__version__), "checkpoint": entry.id, "size": entry.img_size, **published}


if __name__ == "__main__":
    typer.run(main)
