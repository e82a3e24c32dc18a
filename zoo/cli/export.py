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
    from zoo.export import Deployment, Exported


def export(
    model: Annotated[str, typer.Argument(help="A variant, FILE.yaml or FILE.yaml:VARIANT.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    format: Annotated[str, typer.Option(help="onnx, torch-export or aot (compiled for this machine).")] = "onnx",
    size: Annotated[str | None, typer.Option(help="H,W or one side of a square, in pixels.")] = None,
    features: Annotated[bool, typer.Option("--features", help="The maps of the pyramid instead of logits.")] = False,
    static: Annotated[bool, typer.Option("--static", help="Fix the size, and the batch to one image.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-c", help="Weights in any published form.")
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Download the published weights.")] = False,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Width of the classifier.")] = None,
    allow_nan: AllowNan = False,
) -> None:
    """A model as a file for ONNX Runtime, torch.export.load or AOTInductor, compared with the model."""
    from zoo import create_model
    from zoo.export import deployment
    from zoo.export import export as write
    from zoo.vision import is_trained

    shape = _size(size)
    check_output(output)
    built = create_model(
        model, pretrained, checkpoint=checkpoint, features_only=features, num_classes=num_classes
    ).eval()
    if not allow_nan:
        check_finite(built)
    exported = write(built, output, format, shape, not static)
    show(_table(model, exported, deployment(built, exported)))
    if not is_trained(model, pretrained, checkpoint):
        say("The weights are random; --pretrained downloads trained ones.")


def _size(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    sides = text.split(",")
    if len(sides) > 2 or not all(side.strip().isdecimal() for side in sides):
        raise ConfigError(f"--size is {text!r}, expected H,W or one number of pixels")
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _table(model: str, exported: Exported, found: Deployment) -> Table:
    table = Table(show_header=False, title=f"{model}, {exported.format}", box=box.SIMPLE)
    table.add_row("file", f"{exported.path}, {exported.bytes / 1e6:.1f} MB")
    table.add_row("input", f"images ({', '.join(_axes(exported))})")
    table.add_row("outputs", ", ".join(exported.outputs))
    for (height, width), difference in found.differences.items():
        table.add_row("difference", f"{difference:.1e} of the standard deviation at {height} x {width}")
    runtime, eager = found.milliseconds
    height, width = exported.size
    table.add_row("latency", f"{runtime:.1f} ms, eager PyTorch {eager:.1f} ms, one image of {height} x {width}")
    return table


def _axes(exported: Exported) -> list[str]:
    if not exported.least:
        return ["1", str(exported.channels), *map(str, exported.size)]
    batch, height, width = (f"{name} >= {least}" for name, least in exported.least.items())
    return [batch, str(exported.channels), height, width]
