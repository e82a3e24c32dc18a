"""What tests of training share: a tiny model on a few images, in seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.training.recipe import Recipe, load_recipe

TINY: dict[str, Any] = {
    "overrides": {
        "stem": {"type": "conv", "layers": [{"kernel": 4, "stride": 4, "padding": 0, "norm": "layernorm"}]},
        "block.mlp": {"type": "mlp", "norm": "layernorm", "ratio": 2},
        "stages": [
            {"dim": 16, "depth": 1, "attn": {"type": "window", "norm": "layernorm", "head_dim": 8, "size": 4}},
            {"dim": 24, "depth": 1, "attn": {"type": "global", "norm": "layernorm", "head_dim": 8}},
        ],
    },
    "epochs": 2,
    "batch_size": 12,
    "warmup_epochs": 0,
    "drop_path_rate": 0.0,
    "log_every": 1,
}
COLOURS = {"blue": (40, 60, 200), "green": (60, 190, 70), "red": (210, 50, 40)}


def hear_signals() -> None:
    """What runs in the background, or under nohup, ignores some signals, and so do its children."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def write_images(root: Path, count: int = 16, size: int = 16, seed: int = 0) -> Path:
    """An ImageFolder of noise around three colours, `count` of each."""
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.normal(colour, 250, (size, size, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:03d}.png")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """48 images of three classes, of which some are held out for validation."""
    return write_images(tmp_path / "images")


@pytest.fixture
def tiny(folder: Path) -> Callable[..., Recipe]:
    """A recipe for a tiny model on `folder`, with changes."""
    return lambda **changes: load_recipe("digits", {**TINY, "data": str(folder), **changes})


def zoo_command(*arguments: str, processes: int = 1, fails: bool = False) -> str:
    """The output of `zoo` with these arguments, run by one process or by several with torchrun."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, *launch, "-m", "zoo", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr
