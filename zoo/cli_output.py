"""What the commands print with, and how their errors end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from zoo.errors import CheckpointError, ConfigError

console = Console()
errors = Console(stderr=True)


@contextmanager
def reported() -> Iterator[None]:
    """Print the errors that are meant for people and exit with status 1, without a traceback."""
    try:
        yield
    except (ConfigError, CheckpointError, ValueError, OSError, ImportError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
