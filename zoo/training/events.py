"""Writes numbers of a run for TensorBoard."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class Events:
    """Numbers for TensorBoard, which end no run: if they cannot be written, they are left out from then on.

    Args:
        folder: where they are written.
        step: numbers from here on that an interrupted run has left there are not shown.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._before, threading.excepthook = threading.excepthook, self._failed
        self._writer: SummaryWriter | None = None
        with self._leaving_out():
            self._writer = SummaryWriter(str(folder), purge_step=step)

    def add(self, values: dict[str, float], step: int, flush: bool = False) -> None:
        """Write numbers of a step."""
        with self._leaving_out():
            for name, value in values.items():
                if self._writer is not None:
                    self._writer.add_scalar(name, value, step)
            if flush and self._writer is not None:
                self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        with self._leaving_out():
            if self._writer is not None:
                self._writer.close()
        threading.excepthook = self._before

    @contextmanager
    def _leaving_out(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            print(f"TensorBoard's events cannot be written and are left out: {error}", flush=True)

    def _failed(self, arguments: threading.ExceptHookArgs) -> None:
        """Leave an error of TensorBoard's thread to the next call, which raises it again."""
        if not isinstance(arguments.exc_value, OSError):
            self._before(arguments)
