"""Phases of a run in their order, each operation in a process of its own; the next ones load while nothing is timed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpu.run import CONTEXT_LOST, Run

SIDE_BY_SIDE = ("correctness",)
"""Phases in which all operations run at once, as nothing is timed."""
UNDIVIDED = ("machine", "compile", "families", "models")
"""Phases that are not divided by operation."""
TIMED = ("kernels", "tune", "peers", "models")
"""Phases during which no other process may be at work."""
GRACE = 3
"""Seconds of the time that are kept to end processes in: one may hang in a kernel."""
RESTARTS = 3
"""So often an operation whose process died goes on after the unit of work at which it died."""


@dataclass
class Worker:
    """A process that imports what it needs and then waits for its settings."""

    phase: str
    part: str
    process: subprocess.Popen
    ready: int
    restarts: int = 0

    def loaded(self, seconds: float) -> bool:
        """Whether it has imported what it needs, or died of it; waits so long for that."""
        return bool(select.select([self.ready], [], [], max(0, seconds))[0])

    def start(self, run: Run) -> None:
        """Give it its settings; one that died before its turn is noticed when it is waited for."""
        with suppress(OSError):
            self.process.stdin.write(run.to_json() + "\n")
            self.process.stdin.close()

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None if it had to be killed, with all processes of its own."""
        try:
            return self.process.wait(max(0, seconds))
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        """End it, with all processes of its own."""
        with suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # as when the driver does not let go of it
            self.process.wait(1)


@dataclass
class Step:
    """The parts of a phase that run at once."""

    phase: str
    most: float
    parts: list[str]
    workers: list[Worker] = field(default_factory=list)


class Conductor:
    """Starts the workers of a run, gives each its share of the time, and notes those that die."""

    def __init__(self, run: Run) -> None:
        self.run = replace(run, deadline=run.deadline - GRACE)
        self.log = Path(run.out) / "log.txt"
        self.started: list[Worker] = []

    def play(self, phases: list[tuple[str, float]]) -> None:
        """Note the machine, then run phases, each with the most seconds that it may take.

        Raises:
            SystemExit: if there is no such machine.
        """
        steps = [Step(phase, most, parts) for phase, most in phases for parts in self._divided(phase)]
        if not steps:
            return
        steps.insert(0, Step("machine", self.run.left(), ["all"]))
        ends: dict[str, float] = {}
        try:
            for i, step in enumerate(steps):
                self._load(step)
                for later in _to_load(steps, i):
                    self._load(later)
                share = self._share(step, steps[i:], ends)
                self._play(step, share)
        finally:
            for worker in self.started:
                worker.kill()

    def _divided(self, phase: str) -> list[list[str]]:
        """The parts of a phase that run at once, group after group."""
        if phase in UNDIVIDED:
            return [["all"]]
        operations = list(self.run.operations)
        return [operations] if phase in SIDE_BY_SIDE else [[operation] for operation in operations]

    def _load(self, step: Step) -> None:
        """Start the workers of a step, if they are not, and if there is time for them."""
        if not step.workers and self.run.left() > 0:
            step.workers = [self._worker(step.phase, part) for part in step.parts]

    def _worker(self, phase: str, part: str) -> Worker:
        """A process whose output is appended to the log."""
        ready, says_ready = os.pipe()
        with self.log.open("a") as log:
            options = {"cwd": Path(__file__).parents[1], "stdin": subprocess.PIPE, "stdout": log, "stderr": log}
            command = [sys.executable, "-m", "gpu.worker", phase, part, str(says_ready)]
            process = subprocess.Popen(command, text=True, start_new_session=True, pass_fds=[says_ready], **options)
        os.close(says_ready)
        self.started.append(Worker(phase, part, process, ready))
        return self.started[-1]

    def _share(self, step: Step, to_come: list[Step], ends: dict[str, float]) -> Run:
        """The settings of a step: its phase's time is divided evenly among what is left of it."""
        loaded = [worker.loaded(self.run.left()) for worker in step.workers]
        end = ends.setdefault(step.phase, min(self.run.deadline, time.time() + step.most))
        parts = sum(other.phase == step.phase for other in to_come)
        seconds = max(0, end - time.time()) / parts if all(loaded) else 0
        return replace(self.run, deadline=time.time() + seconds)

    def _play(self, step: Step, share: Run) -> None:
        if share.left() < 1 or not step.workers:
            for part in step.parts:
                what = {"phase": step.phase, "operation": part, "case": "all", "provider": "all"}
                self.run.write("unit", **what, status="skipped", seconds=0, note="did not fit")
            return
        for worker in step.workers:
            worker.start(share)
        for worker in step.workers:
            self._finish(worker, share)

    def _finish(self, worker: Worker, share: Run) -> None:
        """Wait for a worker; if it does not end in time, end it; if it died, note it and go on after what killed it."""
        start = time.time()
        status = worker.wait(share.left() + GRACE)
        for refused in (row["note"] for row in self.run.rows() if row["kind"] == "refused"):
            raise SystemExit(refused)
        if status != 0:
            self._note_death(worker, status, time.time() - start)
        self.run.write("phase", phase=worker.phase, operation=worker.part, seconds=round(time.time() - start, 1))
        if status and worker.restarts < RESTARTS and share.left() > 1:
            again = self._worker(worker.phase, worker.part)
            again.restarts = worker.restarts + 1
            if again.loaded(share.left()):
                again.start(share)
                self._finish(again, share)

    def _note_death(self, worker: Worker, status: int | None, seconds: float) -> None:
        """A row for the unit of work at which a process ended; what came after it was not done."""
        if status == CONTEXT_LOST:
            return  # of which it has said more itself
        what = {"phase": worker.phase, "operation": worker.part, "case": "", "provider": "worker"}
        begun = [row for row in self.run.rows() if row["kind"] == "begun" and row["process"] == worker.process.pid]
        if begun:
            what |= {key: begun[-1][key] for key in what}
        note = "it hung and was killed" if status is None else f"its process ended with status {status}, see log.txt"
        self.run.write("unit", **what, status="failed", seconds=round(seconds, 1), note=note)


def _to_load(steps: list[Step], i: int) -> list[Step]:
    """The steps after number `i` that may load beside it: the next one, and all that are timed after that."""
    if steps[i].phase in TIMED:
        return []
    last = i + 1
    while last < len(steps) and steps[last].phase in TIMED:
        last += 1
    return steps[i + 1 : max(last, i + 2)]
