"""Names of files and classes as text that any terminal and any file can take."""

from __future__ import annotations

import unicodedata

_UNSHOWN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, of bytes that are not UTF-8, and of line and paragraph separators."""
_TURNING = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
"""Characters that reverse the direction of the text after them."""


def printable(name: str) -> str:
    """A name with everything that terminals would obey or reject written as `\\x1b` or `\\udcff`."""
    return "".join(_escaped(c) if unicodedata.category(c) in _UNSHOWN or c in _TURNING else c for c in name)


def printable_lines(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
