"""The report of a run: summary, curves, confusion matrix, sample predictions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from zoo.files import write_json, write_text
from zoo.models.create import create_model
from zoo.training.data.loading import Batch
from zoo.training.data.splits import Split
from zoo.training.evaluate import evaluate
from zoo.training.metrics import Metrics
from zoo.training.problems import Problems
from zoo.training.setup import Parts
from zoo.training.state import Progress
from zoo.vision.arrays import grey
from zoo.vision.images import ImageError, decode
from zoo.vision.predict import predict

MOST_CLASSES = 50
"""The maximum number of classes in a picture of the confusion matrix."""
SAMPLES = 24
FACTS = ("top1", "top5", "loss", "calibration_error")


def write_report(
    parts: Parts, progress: Progress, best: Path, validation: Iterable[Batch], problems: Problems
) -> dict[str, Any]:
    """Validate the best checkpoint as it was saved, and write summary, curves, confusion and samples beside it."""
    output = best.parent
    model = create_model(str(best)).to(parts.accelerator.device)
    metrics, _ = evaluate(model, validation, len(parts.train.classes), parts.accelerator)
    summary = summarise(parts, progress, metrics, problems)
    if parts.accelerator.is_main_process:
        write_json(output / "summary.json", summary)
        draw_curves(progress.history).savefig(output / "curves.png", dpi=100)
        if len(parts.train.classes) <= MOST_CLASSES:
            draw_confusion(metrics.confusion.cpu(), parts.train.classes).savefig(output / "confusion.png", dpi=100)
        draw_samples(model.cpu(), parts.validation, parts.recipe.in_chans).savefig(output / "predictions.png", dpi=100)
    parts.accelerator.wait_for_everyone()
    return summary


def write_history(history: list[dict[str, float]], path: Path) -> None:
    """Write a CSV with one row per epoch."""
    rows: list[list[Any]] = [list(history[0]), *(list(row.values()) for row in history)] if history else []
    write_text(path, "".join(",".join(map(str, row)) + "\n" for row in rows))


def summarise(parts: Parts, progress: Progress, metrics: Metrics, problems: Problems) -> dict[str, Any]:
    """The facts of a run; top-1, top-5 and loss are those of the best checkpoint."""
    found = metrics.result()
    return {
        "model": parts.model_name,
        "parameters": sum(p.numel() for p in parts.backbone.parameters()),
        **{key: found[key] for key in FACTS},
        "epochs": len(progress.history),
        "best_epoch": progress.best_epoch,
        "steps": progress.step,
        "skipped_steps": progress.skipped,
        "images_per_second": progress.images / max(progress.training_seconds, 1e-9),
        "seconds": progress.seconds,
        "training_images": len(parts.train),
        "validation_images": found["images"],
        "unreadable_images": len(problems.unreadable()),
        "per_class": dict(zip(parts.train.classes, metrics.per_class(), strict=True)),
    }


def draw_curves(history: list[dict[str, float]]) -> Figure:
    """Loss and accuracy by epoch."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    losses.plot(epochs, [row["train_loss"] for row in history], label="training")
    losses.plot(epochs, [row["loss"] for row in history], label="validation")
    losses.set(xlabel="epoch", ylabel="loss")
    losses.legend()
    accuracy.plot(epochs, [row["top1"] for row in history], label="top-1", color="tab:green")
    accuracy.set(xlabel="epoch", ylabel="top-1 of the validation images, %")
    return figure


def draw_confusion(confusion: torch.Tensor, classes: tuple[str, ...]) -> Figure:
    """(classes, classes) counts: a row for each class, a column for each prediction."""
    side = max(4.0, 0.35 * len(classes))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(classes))
    axes.set(xlabel="prediction", ylabel="class", xticks=ticks, yticks=ticks)
    axes.set_xticklabels(classes, rotation=90, parse_math=False)
    axes.set_yticklabels(classes, parse_math=False)
    for row, column in confusion.nonzero().tolist():
        colour = "white" if row == column else "black"
        axes.text(column, row, str(int(confusion[row, column])), ha="center", va="center", fontsize=7, color=colour)
    return figure


def draw_samples(model: nn.Module, split: Split, channels: int = 3) -> Figure:
    """Some evenly chosen validation images, each with its class and the model's prediction."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(4, 6).flat
    positions = torch.linspace(0, len(split) - 1, min(SAMPLES, len(split))).long().unique().tolist()
    for axis in figure.axes:
        axis.axis("off")
    for axis, position in zip(axes, positions, strict=False):
        try:
            with split.open(position) as file:
                image, _ = decode(file, channels)
        except (ImageError, OSError):
            continue
        guess, wanted = predict(model.eval(), [image], 1)[0][0], int(split.targets[position])
        picture = grey(image) if isinstance(image, torch.Tensor) else image
        axis.imshow(picture, cmap="gray", interpolation="nearest" if picture.width < 32 else None)
        colour = "tab:green" if guess.index == wanted else "tab:red"
        title = f"{split.classes[wanted]}: {guess.label} {guess.probability:.0%}"
        axis.set_title(title, fontsize=8, color=colour, parse_math=False)
    return figure
