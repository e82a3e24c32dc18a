"""Recognises files that are no checkpoints although they are named like one: failed downloads, mostly."""

from __future__ import annotations

from pathlib import Path

from zoo.errors import CheckpointError

_BEGINNING = 512
"""Bytes; safetensors files begin with the length of their header, 8 bytes."""


def check_content(path: Path) -> None:
    """Refuse a file that is something else, with the sentence that helps.

    Raises:
        CheckpointError: if it is empty, a web page, a pointer of Git LFS or JSON.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_BEGINNING).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start:
        what, then = "is empty", "fetch it again"
    elif start.startswith(b"version https://git-lfs"):
        what, then = "is a pointer of Git LFS, not the file", "fetch the file with `git lfs pull`, or from its web page"
    elif start[:1] == b"<" and start[1:2] in b"!?hHxX":
        what, then = "is a web page", "its download failed: open the address in a browser, log in if asked, and save it"
    elif start[:1] in b"{[" and start[1:2] in b'"{[ \t\r\n]}':
        what, then = "is JSON", "it may be an index or the answer of a server: fetch the file of the weights itself"
    else:
        return
    raise CheckpointError(f"{path}: {what}, and no checkpoint; {then}")
