"""The two errors a user meets: a configuration that cannot be read, a checkpoint that does not fit."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class ConfigError(ValueError):
    """A model name, configuration or override is wrong; the message says where, what was found and what is allowed."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit the model; the model is left as it was."""


@dataclass(frozen=True)
class Where:
    """A place in a configuration: the file and the path of keys inside it."""

    file: str
    keys: tuple[str | int, ...] = ()

    def __truediv__(self, key: str | int) -> Where:
        return Where(self.file, (*self.keys, key))

    def __str__(self) -> str:
        return f"{self.file}: {'.'.join(map(str, self.keys))}" if self.keys else self.file

    def error(self, found: object, expected: str) -> ConfigError:
        """The error for `found` at this place, where `expected` was to stand."""
        return ConfigError(f"{self}: found {shorten(found)}, expected {expected}")

    def unknown(self, name: object, allowed: Iterable[str], what: str = "key") -> ConfigError:
        """The error for a name that is not among `allowed`, with the nearest one."""
        allowed = sorted(allowed)
        near = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        listed = ", ".join(allowed[:40]) + (", ..." if len(allowed) > 40 else "")
        return ConfigError(f"{self}: unknown {what} {shorten(name)}{hint} Allowed: {listed or 'none'}")


def shorten(value: object, limit: int = 80) -> str:
    """`repr(value)` cut to `limit` characters; safe for values that cannot be represented."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int too long to print, a structure that contains itself
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."
