"""`zoo explain`: pictures of what a pixel attends, and of what decides."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from zoo.cli.output import PICTURES, check_output, say, show
from zoo.errors import ConfigError

if TYPE_CHECKING:
    from zoo.explain import Explanation


class Method(str, Enum):
    """What to draw."""

    ATTENTION = "attention"
    ROLLOUT = "rollout"
    RECEPTIVE_FIELD = "receptive-field"
    GRAD_CAM = "grad-cam"


OPTIONS = {
    Method.ATTENTION: {"--point", "--layer", "--head"},
    Method.ROLLOUT: {"--point"},
    Method.RECEPTIVE_FIELD: {"--point", "--layer"},
    Method.GRAD_CAM: {"--label"},
}


def explain(
    image: Annotated[Path, typer.Argument(help="A picture of any size.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A variant, FILE.yaml or FILE.yaml:VARIANT.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG, PDF or SVG to write.")] = Path("explain.png"),
    method: Annotated[Method, typer.Option(help="What to draw.")] = Method.ATTENTION,
    point: Annotated[str | None, typer.Option(help="x,y in pixels of the picture; its centre if left out.")] = None,
    layer: Annotated[str | None, typer.Option(help="Such as stages.2.blocks.0.attn, or 2 for a stage.")] = None,
    head: Annotated[int | None, typer.Option(help="One head or channel group, from 0; else the mean.")] = None,
    label: Annotated[int | None, typer.Option(help="Class for Grad-CAM; the likeliest if left out.")] = None,
    size: Annotated[int, typer.Option(min=32, help="Longer side the picture is reduced to, in pixels.")] = 336,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-c", help="Weights in any published form.")
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Download the published weights.")] = False,
) -> None:
    """Draw what one pixel attends to, layer by layer, or explain the model by another method."""
    _check_options(method, {"--point": point, "--layer": layer, "--head": head, "--label": label})
    check_output(output, PICTURES)
    import torch

    from zoo import create_model
    from zoo.vision import is_trained, read_image
    from zoo.vision.images import reduced

    whole = read_image(image)
    picture = reduced(whole, size)
    place = None if point is None else _pixel(point, whole.size, picture.size)
    torch.manual_seed(0)
    network = create_model(model, pretrained, checkpoint=checkpoint).eval()
    trained = is_trained(model, pretrained, checkpoint)
    title = model if trained else f"{model}, untrained weights"
    path = _draw(method, network, picture, place, layer, head, label, output, title)
    if not trained:
        say("The weights are random: the picture shows structure, not meaning. --pretrained downloads "
                      "trained ones.")  # fmt: skip
    say(f"wrote {path}")


def _check_options(method: Method, given: dict[str, Any]) -> None:
    for option, value in given.items():
        if value is not None and option not in OPTIONS[method]:
            allowed = ", ".join(sorted(OPTIONS[method]))
            raise ConfigError(f"--method {method.value} has no {option}; it takes {allowed}")


def _pixel(text: str, size: tuple[int, int], reduced: tuple[int, int]) -> tuple[int, int]:
    """The pixel "x,y" of a picture of `size`, (width, height), in the reduced picture."""
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--point is {text!r}, expected two whole numbers x,y, such as 320,200") from None
    if not (0 <= x < size[0] and 0 <= y < size[1]):
        raise ConfigError(f"--point {text} lies outside the picture, which has {size[0]} x {size[1]} pixels")
    return x * reduced[0] // size[0], y * reduced[1] // size[1]


def _draw(
    method: Method,
    network: Any,
    picture: Any,
    point: tuple[int, int] | None,
    layer: str | None,
    head: int | None,
    label: int | None,
    output: Path,
    title: str,
) -> Path:
    from zoo import explain as how

    if method is Method.ROLLOUT:
        return how.save_rollout(how.rollout(network, picture, point), output, title)
    if method is Method.GRAD_CAM:
        return how.save_class_map(how.grad_cam(network, picture, label), output, title)
    if method is Method.RECEPTIVE_FIELD:
        stages = range(4) if layer is None else [_stage(layer)]
        fields = [how.receptive_field(network, picture, point, stage) for stage in stages]
        return how.save_receptive_fields(fields, output, title)
    found = how.explain(network, picture, point, layer)
    path = how.save_attention(found, output, title, head, every=layer is not None)
    _print(found)
    return path


def _stage(layer: str) -> int:
    if layer not in ("0", "1", "2", "3"):
        raise ConfigError(f"--layer is {layer!r}, but a receptive field is that of a stage: 0, 1, 2 or 3")
    return int(layer)


def _print(found: Explanation) -> None:
    table = Table("layer", "type", "part", "keys", "weight", "greatest", box=box.SIMPLE, pad_edge=False)
    for layer in found.layers:
        for part in layer.parts:
            table.add_row(layer.name, layer.mixer, *_row(part))
    show(table)


def _row(part: Any) -> tuple[str, ...]:
    """Name, kind of keys, sum and greatest weight of a part, mean over heads."""
    mean = part.weights.mean(0)
    if part.name == "channels":
        return part.name, f"{mean.shape[1]} channels, {len(part.weights)} groups", "100 %", f"{mean.max():.2%}"
    return part.name, part.detail, f"{part.share:.1%}", f"{mean.max():.2%}"
