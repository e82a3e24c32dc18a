"""A process for one phase of one operation, so that a crash costs no more than that: `python -m gpu.worker`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module

from gpu.run import Run

WORK = {
    "machine": ("machine", "note_machine"),
    "compile": ("compiling", "compile_all"),
    "correctness": ("correctness", "check_operation"),
    "kernels": ("timing", "time_kernels"),
    "tune": ("timing", "tune"),
    "peers": ("timing", "time_peers"),
    "families": ("families", "check_families"),
    "models": ("models", "time_models"),
}
"""Module and function of each phase."""
PHASES = tuple(phase for phase in WORK if phase != "machine")
"""Those that may be asked for; the machine is always noted first."""


def main(phase: str, operation: str, ready: str) -> None:
    """Import what a phase needs, say so by the file descriptor `ready`, wait for the settings, and work."""
    module, function = WORK[phase]
    work: Callable[[Run, str], None] = getattr(import_module(f"gpu.{module}"), function)
    os.write(int(ready), b"1")
    os.close(int(ready))
    settings = sys.stdin.readline()
    if settings:  # else the run ended before it was this phase's turn
        work(Run.from_json(settings), operation)


if __name__ == "__main__":
    main(*sys.argv[1:])
