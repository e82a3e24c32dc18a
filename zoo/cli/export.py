"""`zoo export`: a model as a file for another runtime, compared with the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from zoo.cli.output import AllowNan, check_finite, check_output, say, show
from zoo.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoo.export import Agreement, Deployment, Exported


def export(
    model: Annotated[str, typer.Argument(help="A variant, FILE.yaml or FILE.yaml:VARIANT.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    format: Annotated[
        str, typer.Option(help="onnx, openvino, torch-export or aot (compiled for this machine).")
    ] = "onnx",
    size: Annotated[str | None, typer.Option(help="H,W or one side of a square, in pixels.")] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="A folder of pictures: openvino in int8, in their ranges of values.")
    ] = None,
    features: Annotated[bool, typer.Option("--features", help="The maps of the pyramid instead of logits.")] = False,
    static: Annotated[bool, typer.Option("--static", help="Fix the size, and the batch to one image.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-c", help="Weights in any published form.")
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Download the published weights.")] = False,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Width of the classifier.")] = None,
    allow_nan: AllowNan = False,
) -> None:
    """A model as a file for ONNX Runtime, OpenVINO, torch.export.load or AOTInductor, compared with the model."""
    from zoo import create_model
    from zoo.export import agreement, deployment
    from zoo.export import export as write
    from zoo.vision import is_trained

    shape = _size(size)
    check_output(output)
    built = create_model(
        model, pretrained, checkpoint=checkpoint, features_only=features, num_classes=num_classes
    ).eval()
    if not allow_nan:
        check_finite(built)
    images = _images(built, calibrate, shape) if calibrate else []
    exported = write(built, output, format, shape, not static, images[::2] if images else None)
    held_out = agreement(built, exported, images[1::2]) if images else None
    show(_table(model, exported, deployment(built, exported), held_out))
    if not is_trained(model, pretrained, checkpoint):
        meaning = ", so that equal labels mean nothing" if held_out else ""
        say(f"The weights are random{meaning}; --pretrained downloads trained ones.")


def _images(model: nn.Module, folder: Path, size: int | tuple[int, int] | None) -> list[torch.Tensor]:
    from zoo.export import input_size
    from zoo.vision import read_inputs

    images = read_inputs(model, folder, input_size(model, size))
    if len(images) < 2:
        raise ConfigError(f"{folder}: holds one picture, expected two or more: half calibrate, half compare")
    return images


def _size(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    sides = text.split(",")
    if len(sides) > 2 or not all(side.strip().isdecimal() for side in sides):
        raise ConfigError(f"--size is {text!r}, expected H,W or one number of pixels")
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _table(model: str, exported: Exported, found: Deployment, held_out: Agreement | None) -> Table:
    title = f"{model}, {exported.format}{', int8' if held_out else ''}"
    table = Table(show_header=False, title=title, box=box.SIMPLE)
    table.add_row("file", f"{exported.path}, {exported.bytes / 1e6:.1f} MB")
    table.add_row("input", f"images ({', '.join(_axes(exported))})")
    table.add_row("outputs", ", ".join(exported.outputs))
    for (height, width), difference in found.differences.items():
        table.add_row("difference", f"{difference:.1e} of the standard deviation at {height} x {width}, on noise")
    if held_out:
        table.add_row("relative error", f"{held_out.error:.2%}, {held_out.images} pictures held out of the calibration")
    if held_out and held_out.top1 is not None:
        table.add_row("same top-1", f"{held_out.top1:.1%} of these pictures")
    runtime, eager = found.milliseconds
    height, width = exported.size
    table.add_row("latency", f"{runtime:.1f} ms, eager PyTorch {eager:.1f} ms, one image of {height} x {width}")
    return table


def _axes(exported: Exported) -> list[str]:
    if not exported.least:
        return ["1", str(exported.channels), *map(str, exported.size)]
    batch, height, width = (f"{name} >= {least}" for name, least in exported.least.items())
    return [batch, str(exported.channels), height, width]
