"""Phase `families`: a model of every family gives on the GPU what it gives on the CPU, as the test suite has it."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from gpu.run import Run

TESTS = "tests/test_modes.py"
SECONDS = 60


def check_families(run: Run, _: str) -> None:
    """The tests that want a GPU, one unit of work."""
    what = {"phase": "families", "operation": "all", "case": TESTS, "provider": "pytest"}
    run.unit(SECONDS, partial(_test, run), **what)


def _test(run: Run) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", TESTS]
    root, seconds = Path(__file__).parents[2], max(1, run.left())
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=seconds)
    print(done.stdout, done.stderr)
    return "" if done.returncode == 0 else done.stdout.strip().rpartition("\n")[2]
