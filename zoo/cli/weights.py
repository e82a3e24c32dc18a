"""`zoo weights`: list, fetch, verify, convert and publish checkpoints."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich import box
from rich.table import Column, Table

from zoo.cli.output import check_output, say, show
from zoo.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from zoo.weights.manifest import Checkpoint

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Published weights on this machine.")

T = TypeVar("T")
Names = Annotated[list[str] | None, typer.Argument(help="Checkpoints or variants, as in 'dinat_*'; all if none.")]


@app.command("list")
def list_(names: Names = None) -> None:
    """List the published checkpoints and which of their files are on this machine."""
    from zoo.weights.status import summary

    whole = [Column(header, no_wrap=True) for header in ("checkpoint", "here")]
    table = Table(whole[0], "data", "size", "from", whole[1], "checksum", box=box.SIMPLE, pad_edge=False)
    for entry in _chosen(names):
        place = entry.hub or entry.host
        known = "known" if entry.sha256 else "not seen"
        table.add_row(entry.id, entry.data, str(entry.img_size), place, summary(entry), known)
    show(table)


@app.command()
def fetch(names: Names = None) -> None:
    """Download and convert checkpoints, so that `pretrained=True` needs no network."""
    from zoo.models.published import published_tensors

    def fetch_one(entry: Checkpoint) -> None:
        published_tensors(entry)
        say(f"{entry.id}: ready")

    _each(_chosen(names), fetch_one)


@app.command()
def verify(names: Names = None) -> None:
    """Read every local file and compare it with the manifest."""
    from zoo.weights.status import verify

    table = Table("checkpoint", "file", "checksum", "converted", box=box.SIMPLE, pad_edge=False)
    found = [status for status in map(verify, _chosen(names)) if status.path or status.converted]
    for status in found:
        words = {"right": "as published", "unknown": "none known", "wrong": "WRONG", "absent": "-"}
        table.add_row(
            status.entry.id, str(status.path or "-"), words[status.state], "sound" if status.converted else "no"
        )
    show(table) if found else say("no weights are here")
    if wrong := [str(status.path) for status in found if status.state == "wrong"]:
        raise CheckpointError(f"not the published files; delete them and fetch again: {', '.join(wrong)}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint in any published form.")],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Its variant, or FILE.yaml:VARIANT.")],
) -> None:
    """Convert a published checkpoint to our names, as safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from zoo import convert_checkpoint
    from zoo.files import written
    from zoo.version import __version__
    from zoo.weights.download import sha256_of
    from zoo.weights.files import read_checkpoint

    check_output(target, (".safetensors",))
    tensors = convert_checkpoint(read_checkpoint(source), model)
    about = {"format": "pt", "variant": model, "source": source.name, "sha256": sha256_of(source)}
    try:
        with written(target) as aside:
            save_file(tensors, aside, metadata={**about, "zoo": __version__})
    except SafetensorError as error:
        raise CheckpointError(f"{target}: cannot be written ({error})") from error
    say(f"wrote {len(tensors)} tensors to {target}")


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="A checkpoint.")],
    second: Annotated[Path, typer.Argument(help="Another.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Convert both to our names first.")] = None,
) -> None:
    """Show which tensors of two checkpoints differ, and by how much; exit status 1 if any does."""
    from zoo import convert_checkpoint
    from zoo.weights.diff import differences
    from zoo.weights.files import read_checkpoint

    a, b = (read_checkpoint(path) for path in (first, second))
    if model is not None:
        a, b = (convert_checkpoint(state, model) for state in (a, b))
    found = differences(a, b)
    table = Table("tensor", "difference", box=box.SIMPLE, pad_edge=False)
    for difference in found:
        table.add_row(difference.name, difference.text)
    show(table) if found else say(f"all {len(a)} tensors are equal")
    if found:
        raise typer.Exit(1)


@app.command("import")
def import_(
    place: Annotated[Path, typer.Argument(help="A file, or a folder that is searched for checkpoints.")],
    name: Annotated[str | None, typer.Option("--as", help="The checkpoint that a file is, where several fit.")] = None,
) -> None:
    """Add checkpoints downloaded by hand to the cache, recognised by their content."""
    from zoo.models.recognise import candidates, checkpoint_files, keep

    def import_one(path: Path) -> None:
        fitting = candidates(path)
        chosen = fitting if name is None else [entry for entry in fitting if entry.id == name]
        if len(chosen) != 1:
            raise CheckpointError(f"{path}: may be {', '.join(e.id for e in fitting)}; say which with --as")
        say(f"{path.name} is {chosen[0].id}: {keep(path, chosen[0])}")

    _each(checkpoint_files(place), import_one)


@app.command()
def publish(
    model: Annotated[str, typer.Argument(help="A variant or checkpoint, such as dinat_tiny or dinat_tiny.in1k.")],
    target: Annotated[str, typer.Argument(help="hf-hub:owner/name, or local-dir:folder.")],
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", "-c", help="Other weights than published.")] = None,
    private: Annotated[bool, typer.Option(help="A repository that is created is private.")] = False,
) -> None:
    """Write a model with its weights and a model card to a folder or to the Hub, where timm and zoo can read it."""
    from zoo import create_model
    from zoo.models.publish import publish
    from zoo.models.variants import split_tag
    from zoo.weights.manifest import default_checkpoint

    entry = None if checkpoint else default_checkpoint(*split_tag(model))
    weights = {"pretrained": True} if checkpoint is None else {"checkpoint": checkpoint}
    say(publish(create_model(model, **weights), target, entry, private))


def _each(items: Iterable[T], do: Callable[[T], None]) -> None:
    """Apply a function to every item; failures are reported at the end."""
    failed = []
    for item in items:
        try:
            do(item)
        except (CheckpointError, OSError) as error:
            failed.append(str(error))
    if failed:
        raise CheckpointError("\n".join(failed))


def _chosen(names: list[str] | None) -> list[Checkpoint]:
    """The entries of the manifest that the patterns name."""
    from zoo.weights.manifest import checkpoints

    found = []
    for pattern in names or ["*"]:
        these = [e for e in checkpoints() if fnmatch.fnmatch(e.id, pattern) or fnmatch.fnmatch(e.variant, pattern)]
        if not these:
            raise ConfigError(f"no checkpoint matches {pattern!r}; `zoo weights list` shows all {len(checkpoints())}")
        found += these
    return list(dict.fromkeys(found))
