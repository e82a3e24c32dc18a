"""One run on a GPU: what is asked for, how much time is left, and the rows in which everything is noted."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from gpu.rows import rows_of

PATIENCE = 4
"""A unit of work is stopped after so many times what it was expected to take."""
CONTEXT_LOST = 3
"""Exit status of a worker after an error that leaves nothing to go on with."""


class OutOfTime(BaseException):
    """A unit of work took too long. No Exception, so that nothing on the way takes it for a failure of its own."""


@dataclass(frozen=True)
class Run:
    """The settings of a run, the same in all of its processes.

    `started` is the time at which it began, by which its rows are known; `deadline` is in seconds since the epoch.
    """

    out: str
    started: str
    deadline: float
    device: str
    operations: tuple[str, ...]
    case: str
    batch: int
    models: tuple[str, ...]
    size: int
    jobs: int

    @classmethod
    def from_json(cls, text: str) -> Run:
        values = json.loads(text)
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def backend(self) -> str:
        """The implementation that is tried."""
        return "triton" if self.device == "cuda" else "native"

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.time()

    def rows(self) -> list[dict]:
        """What this run has noted so far, in all of its processes."""
        return [row for row in rows_of(Path(self.out)) if row["run"] == self.started]

    def write(self, kind: str, **row: object) -> None:
        """Note a row at once, in one piece, so that it outlives a crash and other processes do not mix with it."""
        line = json.dumps({"kind": kind, "run": self.started, **row}) + "\n"
        try:
            file = os.open(Path(self.out) / "rows.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                if os.write(file, line.encode()) < len(line.encode()):
                    os.write(file, b"\n")  # so that the next row is whole
            finally:
                os.close(file)
        except OSError as error:
            print(f"a row cannot be kept ({error.strerror}): {line}", file=sys.stderr)
        if kind != "begun":
            with suppress(BrokenPipeError):
                print(" ".join(str(value) for value in row.values() if not isinstance(value, (list, dict))), flush=True)

    def unit(self, seconds: float, work: Callable[[], str | None], **what: str) -> None:
        """Do a unit of work if it fits: `work` writes its rows itself and returns what is wrong, if anything.

        What it raises is noted, not passed on, unless the GPU is lost with it: then this process ends, and the next one
        goes on after this unit. Status of the row: done, wrong, failed, slow (it took several times what it should),
        stopped (the time was up) or skipped (it did not fit).
        """
        if any(row["kind"] == "begun" and what.items() <= row.items() for row in self.rows()):
            return
        if self.left() < seconds:
            self.write("unit", **what, status="skipped", seconds=seconds, note="did not fit")
            return
        self.write("begun", **what, process=os.getpid())
        start, patience = time.time(), PATIENCE * seconds
        slow = "slow" if patience < self.left() else "stopped"
        try:
            with _limit(min(patience, self.left())):
                note = work()
            status = "wrong" if note else "done"
        except OutOfTime as error:
            status, note = slow, str(error)
        except Exception as error:
            status, note = "failed", f"{type(error).__name__}: {str(error)[:400]}"
        self.write("unit", **what, status=status, seconds=round(time.time() - start, 2), note=note or "")
        if status == "failed" and _gpu_is_lost():
            sys.exit(CONTEXT_LOST)


def _gpu_is_lost() -> bool:
    from bench.measure import gpu_is_lost  # and with it torch, which the processes that do no work go without

    return gpu_is_lost()


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside this context after so long, as soon as Python has its turn."""

    def late(*_: object) -> None:
        raise OutOfTime(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
