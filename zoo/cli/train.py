"""`zoo train` and `zoo validate`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from zoo.cli.output import check_output, say, show, unbroken
from zoo.errors import ConfigError
from zoo.files import write_json
from zoo.stop import INTERRUPTED

MOST_CLASSES = 100
"""In a table."""


Option = typer.Option
RecipeName = Annotated[str | None, typer.Argument(help="A shipped recipe, such as finetune or digits, or FILE.yaml.")]
Model = Annotated[str | None, Option("--model", "-m", help="A variant, FILE.yaml or a checkpoint of zoo train.")]
Data = Annotated[str | None, Option("--data", "-d", help="ImageFolder, tar files or hfds/NAME.")]
Output = Annotated[Path | None, Option("--output", "-o", help="Folder of the run; outputs/RECIPE if not given.")]
Classes = Annotated[str | None, Option(help="imagenette, imagewoof, imagenet100 or FILE.txt.")]
Resume = Annotated[str, Option(help="auto: go on with the run in --output, if there is one; never.")]
Settings = Annotated[list[str] | None, Option("--set", help="KEY=VALUE of the recipe; may be given again.")]


def train(
    recipe: RecipeName = None,
    model: Model = None,
    data: Data = None,
    output: Output = None,
    checkpoint: Annotated[str | None, Option("--checkpoint", "-c", help="Weights to start from.")] = None,
    pretrained: Annotated[bool | None, Option("--pretrained", help="Start from the published weights.")] = None,
    classes: Classes = None,
    epochs: Annotated[int | None, Option(help="Passes over the images.")] = None,
    batch_size: Annotated[int | None, Option(help="Images of a step, over all processes.")] = None,
    lr: Annotated[float | None, Option(help="Learning rate, for the recipe's lr_base images a step.")] = None,
    img_size: Annotated[int | None, Option(help="Side of the images in pixels.")] = None,
    workers: Annotated[int | None, Option(help="Processes that read images.")] = None,
    amp: Annotated[str | None, Option(help="no, bf16 or fp16.")] = None,
    compile: Annotated[bool | None, Option("--compile", help="Compile the model.")] = None,
    seed: Annotated[int | None, Option(help="Of everything random.")] = None,
    resume: Resume = "never",
    settings: Settings = None,
) -> None:
    """Train a model by a recipe; the run writes everything to --output."""
    given: dict[str, Any] = {
        "model": model,
        "data": data,
        "checkpoint": checkpoint,
        "pretrained": pretrained,
        "classes": classes,
    }
    given |= {"epochs": epochs, "batch_size": batch_size, "lr": lr, "img_size": img_size, "workers": workers}
    given |= {"amp": amp, "compile": compile, "seed": seed}
    summary = _train(recipe, output, resume, {k: v for k, v in given.items() if v is not None}, settings or [])
    if summary is None:
        raise typer.Exit(INTERRUPTED)


def validate(
    data: Annotated[str, Option("--data", "-d", help="ImageFolder, tar files or hfds/NAME.")],
    model: Annotated[str | None, Option("--model", "-m", help="As the checkpoint says, or davit_tiny.")] = None,
    checkpoint: Annotated[str | None, Option("--checkpoint", "-c", help="Weights in any published form.")] = None,
    pretrained: Annotated[bool, Option("--pretrained", help="Download the published weights.")] = False,
    split: Annotated[str | None, Option(help="Folder of the images; validation, val, valid or test.")] = None,
    classes: Classes = None,
    batch_size: Annotated[int, Option(min=1, help="Images that a process takes at once.")] = 64,
    workers: Annotated[int, Option(min=0, help="Processes that read images.")] = 2,
    amp: Annotated[str, Option(help="no, bf16 or fp16.")] = "no",
    tta: Annotated[bool, Option("--tta", help="Average over an image and its mirror image.")] = False,
    real: Annotated[bool, Option("--real", help="Count with ImageNet's ReaL labels too.")] = False,
    output: Annotated[Path | None, Option("--output", "-o", help="JSON to write.")] = None,
) -> None:
    """Top-1, top-5, loss, calibration and accuracy per class; exact with any number of processes."""
    from zoo.training.needs import needs

    needs("accelerate", "accelerate")
    from zoo.training.validate import Validation, validate

    if output:
        check_output(output)
    report = output.with_suffix(".images.csv") if output else None
    task = Validation(data, split, classes, batch_size, workers, amp, tta, real, report)
    found = validate(task, model, checkpoint, pretrained)
    if not _leave():
        return
    if output:
        write_json(output, found)
    per_class = found.pop("per_class")
    if len(per_class) <= MOST_CLASSES:
        table = Table("class", "top-1 (%)", title=data)
        for name, value in per_class.items():
            table.add_row(name, f"{value:.2f}")
        show(table)
    elif not output:
        say(f"accuracy for each of the {len(per_class)} classes: pass --output FILE.json")
    table = Table(show_header=False)
    for key, value in found.items():
        table.add_row(key, f"{value:.4f}" if isinstance(value, float) else str(value))
    show(table)
    if found["unreadable_images"]:
        where = f"they are listed in {report}" if report else "pass --output FILE.json for their names"
        say(f"some images cannot be read: {where}")


def _leave() -> bool:
    """Wait for the other processes, which need this one's connections. Returns whether this one prints."""
    from accelerate import PartialState

    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
    return state.is_main_process


def _train(
    name: str | None, output: Path | None, resume: str, changes: dict[str, Any], settings: list[str]
) -> dict[str, Any] | None:
    """The summary of a run; None if it was stopped."""
    from zoo.training.needs import needs
    from zoo.training.recipe import load_recipe, parse_setting

    if resume not in ("auto", "never"):
        raise ConfigError(f"--resume is {resume!r}, expected auto or never")
    folder = output or Path("outputs") / Path(name or "run").stem
    if name is None and (output is None or resume == "never" or not (folder / "run.yaml").is_file()):
        raise ConfigError("which recipe? `zoo train digits`, or `zoo train --resume auto --output DIR` to go on")
    recipe = load_recipe(name or folder / "run.yaml", changes | dict(map(parse_setting, settings)))
    needs("accelerate", "accelerate")
    needs("tensorboard", "tensorboard")
    from zoo.training.engine import Interrupted, train

    try:
        with unbroken():
            summary = train(recipe, folder, resume == "auto", say)
    except Interrupted as stopped:
        summary = None
        say(str(stopped))
    if _leave() and summary:
        _print_summary(summary, folder)
    return summary


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    table = Table(show_header=False, title=str(folder))
    table.add_row("top-1, top-5", f"{summary['top1']:.2f} %, {summary['top5']:.2f} %")
    table.add_row("loss", f"{summary['loss']:.4f}")
    table.add_row("epochs", f"{summary['epochs']}, the best is {summary['best_epoch']}")
    table.add_row("images/s", f"{summary['images_per_second']:.1f}")
    table.add_row("seconds", f"{summary['seconds']:.1f}")
    if summary["unreadable_images"]:
        table.add_row("unreadable images", f"{summary['unreadable_images']}, listed in {folder / 'images.csv'}")
    table.add_row("checkpoint", str(folder / "best.safetensors"))
    show(table)
