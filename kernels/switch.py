"""Settings that hold inside a `with` block, in the thread or task that entered it and in no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from threading import Lock
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Switch(Generic[T]):
    """A value that is `off` unless it has been set.

    While it is not set anywhere, reading it is a plain attribute access. A function that is being compiled sees the
    value set last by any thread: Dynamo guards attributes, but not every version supports context variables.
    """

    def __init__(self, name: str, off: T) -> None:
        self._off, self._here = off, ContextVar(name, default=off)
        self._active, self._latest = False, off
        self._set: dict[object, T] = {}
        self._lock = Lock()

    def value(self) -> T:
        """The current value."""
        if not self._active:
            return self._off
        return self._latest if torch.compiler.is_compiling() else self._here.get()

    @contextmanager
    def to(self, value: T) -> Iterator[None]:
        """Within this context the value is `value`; entering it in a function that is being compiled has no effect."""
        if torch.compiler.is_compiling():
            yield
            return
        before, own = self._here.set(value), object()
        with self._lock:
            self._set[own] = value
            self._publish()
        try:
            yield
        finally:
            with self._lock:
                del self._set[own]
                self._publish()
            with suppress(ValueError):  # ended in another task, in which nothing was set
                self._here.reset(before)

    def _publish(self) -> None:
        self._active = bool(self._set)
        self._latest = next(reversed(self._set.values()), self._off)
