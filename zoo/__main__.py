"""The `zoo` command, also as `python -m zoo`."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

from zoo.stop import INTERRUPTED, Stop, asked, heard


def main() -> None:
    """Run a command; Ctrl-C, SIGTERM and a closed terminal end it alike, at any moment."""
    try:
        for number in heard():
            signal.signal(number, Stop())
        from zoo.cli.main import app

        app()
    except KeyboardInterrupt:
        _end()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _end()
        raise
    except Exception:
        if asked():
            _end()
        raise


def _end() -> NoReturn:
    """End as interrupted, although Python may remember a KeyboardInterrupt from an import and end itself by SIGINT.

    Processes that read images, which have nothing to lose, are killed: they ignore a first SIGTERM.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch raises an error when such a process ends
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            child.kill()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError):
            stream.flush()
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
