"""Everything that the commands print, and every way in which they end."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from zoo.errors import CheckpointError, ConfigError
from zoo.files import make_writable
from zoo.stop import INTERRUPTED, asked
from zoo.text import printable_lines

if TYPE_CHECKING:
    from torch import nn

AllowNan = Annotated[bool, typer.Option("--allow-nan", help="Take weights that hold NaN or infinity.")]
FAILED = 1
PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
"""What matplotlib writes."""
WIDEST = 10_000
"""Columns of a table in a file or a pipe."""


class Commands(TyperGroup):
    """A group of commands whose errors are reported here, and nowhere else."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Read the arguments, and print help."""
        with _reported():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with _reported():
            return super().invoke(ctx)


class _Literal(Console):
    """Prints names of files and classes as they are: no markup, no :cat:, and no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        """What a cell or a message becomes."""
        return super().render_str(printable_lines(text), **options)


def say(text: str) -> None:
    """Print a message, which the terminal wraps."""
    _Literal().print(text, soft_wrap=True)


def show(table: Table) -> None:
    """Print a table: on a terminal as wide as that is, elsewhere as wide as it needs; no word in it is cut."""
    console = _Literal()
    free = not console.is_terminal and "COLUMNS" not in os.environ
    for column in table.columns:
        cells = [column.header, *column.cells]
        column.min_width = max(Measurement.get(console, console.options, cell).minimum for cell in cells)
    width = console.width
    console.width = WIDEST
    needed = Measurement.get(console, console.options, table)
    console.width = needed.maximum if free else max(width, needed.minimum)
    console.print(table, crop=False)


def check_output(path: Path, suffixes: tuple[str, ...] = ()) -> None:
    """Check that a file can be written, and create its folder, before any work is done for it.

    Raises:
        ConfigError: if not.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise ConfigError(f"{path}: expected a name that ends in {' or '.join(suffixes)}")
    try:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "not a file"
            raise ConfigError(f"{path}: is {kind}, expected the name of a file")
        make_writable(path.parent)
        if path.exists():
            path.open("r+b").close()
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from error


def check_finite(model: nn.Module) -> None:
    """Check that the weights of a model are numbers.

    Raises:
        CheckpointError: if there is NaN or infinity among them.
    """
    from zoo.weights.load import find_nonfinite

    if wrong := find_nonfinite(model.state_dict()):
        raise CheckpointError(
            f"{len(wrong)} of the model's tensors hold NaN or infinity, the first is {wrong[0]}, so that its outputs "
            "mean nothing; pass --allow-nan to use it all the same"
        )


@contextmanager
def _reported() -> Iterator[None]:
    """Print errors and exit with a status, without a traceback; ZOO_TRACEBACK=1 shows that of an unexpected one."""
    _open_streams()
    _show_warnings()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except (KeyboardInterrupt, Exception) as error:
        _report(error)


def _report(error: KeyboardInterrupt | Exception) -> NoReturn:
    if isinstance(error, KeyboardInterrupt) or asked():  # imports make other errors of a KeyboardInterrupt
        sys.unraisablehook = lambda _: None  # of what it has left half done
        _fail("interrupted", INTERRUPTED)
    if isinstance(error, (ConfigError, CheckpointError, ValueError, OSError, ImportError)):
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC, errno.EIO):
            drop(sys.stdout)  # what waits to be written cannot be written at the end either
        if isinstance(error, BrokenPipeError):  # `zoo list | head`
            raise typer.Exit(FAILED) from None
        _fail(_said(error))
    if isinstance(error, typer.Abort) or hasattr(error, "exit_code") or os.environ.get("ZOO_TRACEBACK"):
        raise error
    _fail(
        f"{type(error).__name__}: {error}\nThis is a fault of zoo: please report it, with the traceback that the "
        "same command shows under ZOO_TRACEBACK=1"
    )


class _Warnings(logging.Handler):
    """Prints what the zoo logs on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        with suppress(OSError):
            _Literal(stderr=True).print(f"{record.levelname.lower()}: {record.getMessage()}", soft_wrap=True)


def _show_warnings() -> None:
    logger = logging.getLogger("zoo")
    if not any(isinstance(handler, _Warnings) for handler in logger.handlers):
        logger.addHandler(_Warnings(logging.WARNING))


def _said(error: Exception) -> str:
    """The words of an error; those of the system name their file first."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _fail(text: str, status: int = FAILED) -> NoReturn:
    with suppress(OSError):
        message = Text.assemble(("error:", "bold red"), f" {printable_lines(text)}")
        _Literal(stderr=True).print(message, soft_wrap=True)
    raise typer.Exit(status) from None


def _open_streams() -> None:
    """Names that a terminal cannot show, and streams that are closed, must not end a command."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def unbroken() -> Iterator[None]:
    """Within this context a reader of the output that goes away, or a full disk behind it, ends nothing."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_Unbroken, streams)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


class _Unbroken:
    """A stream that is dropped when it fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or not."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush, or not."""
        self._try(self._stream.flush)

    def _try(self, do: Callable[..., Any], *arguments: Any) -> None:
        try:
            do(*arguments)
        except OSError:
            drop(self._stream)


def drop(stream: Any) -> None:
    """From now on nothing that is written to a stream arrives, and nothing fails."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
