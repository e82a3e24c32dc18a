"""Where weights are kept: `ZOO_HOME`, else the user's cache; files of the Hub stay in the Hub's own cache."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder of everything that the zoo keeps on this machine."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("ZOO_HOME") or f"{cache}/zoo").expanduser()


def folder_of(checkpoint_id: str) -> Path:
    """The folder of one published checkpoint: the file as published, and its tensors under our names."""
    return home() / "weights" / checkpoint_id
