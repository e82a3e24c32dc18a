"""The `zoo` command, also as `python -m zoo`."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


class Stop:
    """Raises KeyboardInterrupt at a signal, and remembers it: an import may swallow the error."""

    asked = False

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        self.asked = True
        raise KeyboardInterrupt


def main() -> None:
    """Run a command; Ctrl-C, SIGTERM and a closed terminal end it alike, at any moment."""
    try:
        stop = Stop()
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, stop)
        from zoo.cli.main import app

        app()
    except KeyboardInterrupt:
        _end()
    except SystemExit as end:
        if end.code == INTERRUPTED:
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
