"""The `zoo` command: parse, call, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Column, Table

from zoo.cli import benchmark, explain, export, train, weights
from zoo.cli.output import PICTURES, AllowNan, Commands, check_finite, check_output, say, show
from zoo.errors import ConfigError
from zoo.version import __version__

if TYPE_CHECKING:
    from zoo.weights.manifest import Checkpoint

app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False)
Model = Annotated[str, typer.Option("--model", "-m", help="A variant, FILE.yaml or FILE.yaml:VARIANT.")]
CheckpointFile = Annotated[Path | None, typer.Option("--checkpoint", "-c", help="Weights in any published form.")]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Download the published weights.")]


def _version(asked: bool) -> None:
    if asked:
        say(f"zoo {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Hierarchical vision backbones from YAML."""


@app.command("list")
def list_(
    pattern: Annotated[str, typer.Argument(help="Shell-style pattern, such as 'maxvit_*_224'.")] = "*",
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only what can be downloaded.")] = False,
) -> None:
    """Table of the shipped variants with their published figures."""
    from zoo.config.catalog import family_of, shipped
    from zoo.weights.manifest import checkpoints_of

    whole = [Column(header, no_wrap=True) for header in ("model", "licence", "weights")]
    table = Table(whole[0], "params (M)", "GMACs", "size", "top-1 (%)", *whole[1:], box=box.SIMPLE, pad_edge=False)
    for name in fnmatch.filter(shipped(), pattern):
        entries = sorted(checkpoints_of(name), key=lambda entry: not entry.by_machine)
        if family not in (None, family_of(name)) or (pretrained and not any(e.by_machine for e in entries)):
            continue
        table.add_row(name, *(_published(entries[0]) if entries else ("-",) * 6))
    if not table.row_count:
        raise ConfigError(f"no model matches {pattern!r}; `zoo list` shows all {len(shipped())}")
    show(table)


def _published(entry: Checkpoint) -> tuple[str, ...]:
    top1 = entry.top1 or entry.top1_timm
    licences = dict.fromkeys([entry.licence_code, entry.licence_weights or "not stated"])
    numbers = f"{entry.params_m:.1f}", f"{entry.gmacs:.1f}", str(entry.img_size), f"{top1:.1f}" if top1 else "-"
    return (*numbers, ", ".join(licences), entry.host if entry.by_machine else "by hand")


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A variant, FILE.yaml or FILE.yaml:VARIANT.")],
    size: Annotated[int | None, typer.Option(help="Side of a square image for the GMACs, in pixels.")] = None,
) -> None:
    """Show the facts about a model: size, cost, accuracy, licences, sources of its weights."""
    from zoo import model_info

    facts = model_info(model, size)
    table = Table(show_header=False, title=facts.name)
    table.add_row("family", facts.family)
    table.add_row("parameters", f"{facts.params / 1e6:.2f} M")
    table.add_row("cost", f"{facts.gmacs:.2f} GMACs at {facts.img_size[0]} x {facts.img_size[1]}")
    levels = zip(facts.reductions, facts.num_chs, strict=True)
    table.add_row("pyramid", ", ".join(f"stride {stride}: {width}" for stride, width in levels))
    table.add_row("stochastic depth", f"{facts.drop_path_rate:g} in training, unless drop_path_rate says otherwise")
    table.add_row("top-1", f"{facts.top1:.1f} % on ImageNet-1k, published" if facts.top1 else "not published")
    table.add_row(
        "licence", f"code {facts.licence_code or 'not stated'}, weights {facts.licence_weights or 'not stated'}"
    )
    table.add_row("input", ", ".join(f"{key} {value}" for key, value in facts.input_transform.items()) or "-")
    for entry in facts.checkpoints:
        place = entry.hub or (entry.sources[0] if entry.by_machine else "by hand")
        table.add_row("weights", f"{entry.id}: {entry.data}; {place}")
    for source in facts.sources:
        table.add_row("source", source)
    show(table)


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="As the checkpoint says, or davit_tiny.")] = None,
    checkpoint: CheckpointFile = None,
    pretrained: Pretrained = False,
    topk: Annotated[int, typer.Option(min=1, help="Labels a picture.")] = 5,
    allow_nan: AllowNan = False,
) -> None:
    """Predict labels of pictures: ImageNet's, or those of a checkpoint of `zoo train`.

    All pictures in a folder and its subfolders are read, sorted by folder and name; hidden ones are skipped. The exit
    status is 0 if all could be read; otherwise it is 1, after the labels of the others.
    """
    from zoo.models.load import backbone_of
    from zoo.models.optimize import optimize_for
    from zoo.vision import load_classifier, predict, read_image
    from zoo.vision.images import ImageError

    classifier = load_classifier(model, checkpoint, pretrained)
    if not allow_nan:
        check_finite(classifier)
    channels = backbone_of(classifier).in_chans
    pictures = _pictures(images, channels)
    classifier = optimize_for(len(pictures), classifier)
    table = Table("picture", "label", "probability", title=model or str(checkpoint or ""), show_lines=topk > 1)
    unread = []
    for name, path in pictures:
        try:
            found = predict(classifier, [read_image(path, channels)], topk)[0]
        except ImageError as error:
            unread.append(str(error))
            continue
        labels, shares = [guess.label for guess in found], [f"{guess.probability:.1%}" for guess in found]
        table.add_row(name, "\n".join(labels), "\n".join(shares))
    if table.row_count:
        show(table)
    if unread:
        raise ImageError("\n".join(unread))


def _pictures(given: Sequence[Path], channels: int) -> list[tuple[str, Path]]:
    """Names for the table, with their files: the given files, and those in the given folders by relative path."""
    from zoo.text import printable
    from zoo.vision.folders import extensions, files_below

    found = []
    for path in given:
        if not path.is_dir():
            found.append((printable(path.name), path))
            continue
        files = files_below(path)
        pictures = [file for file in files if file.suffix.lower() in extensions(channels)]
        if not pictures:
            raise ConfigError(f"{path}: holds no pictures, which are looked for as {', '.join(extensions(channels))}")
        if others := len(files) - len(pictures):
            say(f"{path}: {others} other file{'s' * (others > 1)}, not named as pictures, passed over")
        found += [(printable(str(file.relative_to(path))), file) for file in pictures]
    return found


@app.command()
def features(
    image: Annotated[Path, typer.Argument(help="A picture of any size.")],
    model: Model = "davit_tiny",
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG, PDF or SVG to write.")] = Path("pyramid.png"),
    checkpoint: CheckpointFile = None,
    pretrained: Pretrained = False,
    longest: Annotated[int, typer.Option(min=32, help="Longer side the picture is reduced to, in pixels.")] = 640,
) -> None:
    """Draw the feature pyramid: the principal components of each level as colours."""
    check_output(output, PICTURES)
    import torch

    from zoo import create_model
    from zoo.vision import extract, is_trained, read_image, save_picture

    picture = read_image(image)
    torch.manual_seed(0)
    backbone = create_model(model, pretrained, checkpoint=checkpoint, features_only=True).eval()
    pyramid = extract(backbone, picture, longest)
    trained = is_trained(model, pretrained, checkpoint)
    path = save_picture(pyramid, output, model if trained else f"{model}, untrained weights")
    table = Table("stride", "channels", "height", "width", title=f"{model} on {image.name}")
    for stride, level in zip(pyramid.strides, pyramid.maps, strict=True):
        table.add_row(str(stride), *(str(n) for n in level.shape))
    show(table)
    if not trained:
        say("The weights are random: the maps show structure, not meaning. --pretrained downloads trained ones.")
    say(f"wrote {path}")


app.command()(benchmark.benchmark)
app.command()(explain.explain)
app.command()(export.export)
app.command()(train.train)
app.command()(train.validate)
app.add_typer(weights.app, name="weights")
