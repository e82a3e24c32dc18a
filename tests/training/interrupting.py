"""Runs a recipe in forked processes, which skips the seconds that imports take, and stops them at random moments.

    python -m tests.training.interrupting kill 30 2.0 RECIPE OUTPUT

Prints how each process ended; the last one is left to finish.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from random import Random

from zoo.__main__ import main

HOW = {"kill": (os.kill, signal.SIGKILL), "term": (os.killpg, signal.SIGTERM), "int": (os.killpg, signal.SIGINT)}
"""kill -9 to the process, and the others to its whole group, as schedulers and terminals send them."""


def interrupted(how: str, times: int, longest: float, recipe: str, output: str) -> list[int]:
    """The exit statuses of the processes, negative for a signal; each is stopped after at most `longest` seconds."""
    chance, send, number = Random(0), *HOW[how]
    found = []
    for moment in (*(chance.uniform(0.05, longest) for _ in range(times)), None):
        child = os.fork()
        if child == 0:
            _run(recipe, output)
        if moment is not None:
            time.sleep(moment)
            with contextlib.suppress(ProcessLookupError):
                send(child, number)
        found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return found


def _run(recipe: str, output: str) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # those under nohup this one
    sys.argv = ["zoo", "train", recipe, "-o", output, "--resume", "auto"]
    status = 99
    try:
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    import zoo.cli.main
    import zoo.training.engine  # noqa: F401  # before the processes are forked

    how, times, longest, recipe, output = sys.argv[1:]
    print(*interrupted(how, int(times), float(longest), recipe, output), file=sys.stderr)
