"""Ctrl-C and its like as requests to stop, handled between two steps."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

import torch
from accelerate import Accelerator

from zoo import stop


class Interrupt:
    """While this context lasts, a first signal sets `asked`, and a second one ends the process as usual."""

    asked = False

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is not threading.main_thread():  # others get no signals
            self._before = {}
            return self
        self._hook = sys.unraisablehook
        self.asked = stop.asked()
        self._before = {number: signal.getsignal(number) for number in stop.heard()}
        for number in self._before:
            signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            sys.unraisablehook = self._hook

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        sys.unraisablehook = lambda _: None  # a second signal may leave anything half done
        if hasattr(signal, "SIGCHLD"):  # PyTorch raises an error there when a reader ends
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(number, self._before[signal.Signals(number)])


def any_of(asked: bool, accelerator: Accelerator) -> bool:
    """Whether any process is asked; all of them call this at the same moment."""
    if accelerator.num_processes == 1:
        return asked
    count = torch.tensor(float(asked), device=accelerator.device)
    torch.distributed.all_reduce(count)
    return count.item() > 0
