"""Phases of a run in their order, each operation in a process of its own; the next ones load while one is at work."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from gpu.run import Run

SIDE_BY_SIDE = ("correctness",)
"""Phases in which all operations run at once, as nothing is timed."""
UNDIVIDED = ("machine", "compile", "families", "models")
"""Phases that are not divided by operation."""
GRACE = 10
"""Seconds after its deadline at which a process is killed: it may hang in a kernel."""


class Conductor:
    """Starts the workers of a run, gives each its share of the time, and notes those that die."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.log = Path(run.out) / "log.txt"

    def play(self, phases: list[tuple[str, float]]) -> None:
        """Note the machine, then run phases, each with the most seconds that it may take.

        Raises:
            SystemExit: if there is no such machine.
        """
        steps = [(phase, most, parts) for phase, most in phases for parts in self._divided(phase)]
        if not steps:
            return
        steps.insert(0, ("machine", self.run.left(), ["all"]))
        ends: dict[str, float] = {}
        loaded = self._load(steps[0])
        for i, (phase, most, parts) in enumerate(steps):
            workers, loaded = loaded, self._load(steps[i + 1]) if i + 1 < len(steps) else []
            end = ends.setdefault(phase, min(self.run.deadline, time.time() + most))
            to_come = sum(other == phase for other, *_ in steps[i:])
            share = replace(self.run, deadline=time.time() + max(0, end - time.time()) / to_come)
            for worker in workers:
                self._start(worker, share)
            done = [self._finish(phase, part, worker, share) for part, worker in zip(parts, workers, strict=True)]
            if phase == "machine" and not all(done):
                for worker in loaded:
                    worker.kill()
                raise SystemExit(self.log.read_text().strip().rpartition("\n")[2])

    def _divided(self, phase: str) -> list[list[str]]:
        """The parts of a phase that run at once, group after group."""
        if phase in UNDIVIDED:
            return [["all"]]
        operations = list(self.run.operations)
        return [operations] if phase in SIDE_BY_SIDE else [[operation] for operation in operations]

    def _load(self, step: tuple[str, float, list[str]]) -> list[subprocess.Popen]:
        """Workers that import what they need and wait for their settings; their output is appended to the log."""
        phase, _, parts = step
        with self.log.open("a") as log:
            options = {"cwd": Path(__file__).parents[1], "stdin": subprocess.PIPE, "stdout": log, "stderr": log}
            return [
                subprocess.Popen([sys.executable, "-m", "gpu.worker", phase, part], text=True, **options)
                for part in parts
            ]

    def _start(self, worker: subprocess.Popen, run: Run) -> None:
        """Give a worker its settings; one that died before its turn is noticed when it is waited for."""
        try:
            worker.stdin.write(run.to_json() + "\n")
            worker.stdin.close()
        except OSError:
            return

    def _finish(self, phase: str, part: str, worker: subprocess.Popen, run: Run) -> bool:
        """Wait for a worker; if it does not end in time, end it; if it died, note it. Whether it did not."""
        start = time.time()
        try:
            status = worker.wait(max(run.left(), 0) + GRACE)
        except subprocess.TimeoutExpired:
            worker.kill()
            status = worker.wait()
        if status:
            note = f"its process ended with status {status}, see log.txt"
            what = {"phase": phase, "operation": part, "case": "", "provider": "worker"}
            run.write("unit", **what, status="failed", seconds=round(time.time() - start, 1), note=note)
        run.write("phase", phase=phase, operation=part, seconds=round(time.time() - start, 1))
        return status == 0
