"""Phase `families`: a model of every family gives on the GPU what it gives on the CPU, as the test suite has it."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from gpu.run import Run

TESTS = ("tests/test_modes.py", "tests/kernels/test_memory.py")
SECONDS = 60


def check_families(run: Run, _: str) -> None:
    """The tests that want a GPU, one unit of work."""
    what = {"phase": "families", "operation": "all", "case": " ".join(TESTS), "provider": "pytest"}
    if find_spec("pytest") is None:
        run.write("unit", **what, status="skipped", seconds=SECONDS, note="there is no pytest")
        return
    run.unit(SECONDS, partial(_test, run), **what)


def _test(run: Run) -> str:
    options = ["-v", "-m", "gpu", "-p", "no:cacheprovider", "--import-mode=append"]
    command = [sys.executable, "-m", "pytest", *options, *TESTS]
    # The root of the checkout has a folder `zoo` without its kernels: the installed package comes first.
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    root, seconds = Path(__file__).parents[2], max(1, run.left())
    log = (Path(run.out) / "log.txt").open("a+")
    with log:
        start = log.seek(0, os.SEEK_END)
        done = subprocess.run(command, cwd=root, env=environment, stdout=log, stderr=log, timeout=seconds)
        log.seek(start)
        last = log.read().strip().rpartition("\n")[2]
    return "" if done.returncode == 0 and ("passed" in last or run.device == "cpu") else last
