"""Records which operations a model calls, and with which arguments, for inspection from outside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch

from zoo.kernels.switch import Switch

_calls: Switch[list[Call] | None] = Switch("recording", None)


@dataclass(frozen=True)
class Call:
    """One call of a public operation.

    Attributes:
        operation: the operation itself.
        arguments: all arguments by name, including defaults; tensors as they were passed.
    """

    operation: Callable[..., torch.Tensor]
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """The operation's name in `zoo.kernels`."""
        return self.operation.__name__

    def again(self, **changes: Any) -> torch.Tensor:
        """The result of the operation with some arguments changed."""
        return self.operation(**self.arguments | changes)


def recorded(operation: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A decorator for public operations, whose calls are recorded while `recording` is active."""
    signature = inspect.signature(operation)

    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls = _calls.value()
        if calls is not None:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            calls.append(Call(operation, dict(bound.arguments)))
        return operation(*args, **kwargs)

    # torch.compile keeps and counts its graphs by code object, which would otherwise be one for all operations.
    call.__code__ = call.__code__.replace(co_name=operation.__name__)
    return wraps(operation)(call)


@contextmanager
def recording() -> Iterator[list[Call]]:
    """Within this context every call of an operation in this thread is appended to the yielded list."""
    calls: list[Call] = []
    with _calls.to(calls):
        yield calls
