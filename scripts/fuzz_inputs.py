"""Gives the zoo what unlucky users give it: recipes, settings, metadata, state dicts and command lines.

    python scripts/fuzz_inputs.py --draws 20000
    python scripts/fuzz_inputs.py --draws 1 --seed 4711                # a failure once more, alone

Each draw has a seed of its own. An error must be one of the zoo's own, and what is accepted must be kept as it was
given: a text is no number, and true is not 1. Exit status 1 if anything fails.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from fuzz_values import KINDS, SHARES, Mismatch, Place
from rich.console import Console
from rich.table import Table

from zoo import CheckpointError, ConfigError


@dataclass
class Found:
    """What the draws of one kind showed."""

    draws: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)


def main(
    draws: Annotated[int, typer.Option(min=1)] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the first draw; the next one's is larger by one.")] = 0,
) -> None:
    """Draw, and print what was found."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    found = run(range(seed, seed + draws))
    table = Table("kind", "draws", "refused", "failures")
    for kind, one in found.items():
        table.add_row(kind, str(one.draws), str(one.refused), str(len(one.failures)))
    console = Console()
    console.print(table)
    failures = [text for one in found.values() for text in one.failures]
    for text in failures[:20]:
        console.print(text, markup=False)
    raise typer.Exit(bool(failures))


def run(seeds: Iterable[int]) -> dict[str, Found]:
    """Make one draw for each seed; the kinds take turns by their shares."""
    found = {kind: Found() for kind in KINDS}
    names = [kind for kind, share in SHARES.items() for _ in range(share)]
    with TemporaryDirectory() as folder:
        place = Place(Path(folder))
        for seed in seeds:
            kind = names[seed % len(names)]
            found[kind].draws += 1
            try:
                KINDS[kind](Random(seed), place)
            except (ConfigError, CheckpointError):
                found[kind].refused += 1
            except Mismatch as error:
                found[kind].failures.append(f"seed {seed}, {kind}: {error}")
            except Exception:
                found[kind].failures.append(f"seed {seed}, {kind}: {traceback.format_exc(limit=-6)}")
    return found


if __name__ == "__main__":
    typer.run(main)
