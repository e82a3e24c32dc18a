"""Output and error handling of the commands."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from zoo.errors import CheckpointError, ConfigError

console = Console(markup=False, emoji=False)  # names of files and classes are printed literally, even [red] and :cat:
errors = Console(stderr=True)


@contextmanager
def reported() -> Iterator[None]:
    """Print errors that are meant for the user and exit with status 1, without a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end a run
    try:
        yield
    except (ConfigError, CheckpointError, ValueError, OSError, ImportError) as error:
        errors.print(Text.assemble(("error:", "bold red"), f" {error}"), highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
