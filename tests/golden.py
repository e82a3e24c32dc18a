"""Recorded outputs of the published implementations, and the weights they were recorded with.

A record holds, for one published set of keys, every key with its shape, and what the published code computes
with weights that are a function of the key alone (`fill`), so no checkpoint is needed to compare with it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "goldens"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
SCALES = ("weight", "gamma", "gamma1", "gamma2")


class Golden:
    """One record: `info` (variant, source, state, input, ...) and `arrays` (logits and stage statistics).

    Entries of `state` are [key, shape], and [key, shape, "const"] for a table that the published code computes.
    """

    def __init__(self, name: str) -> None:
        with np.load(FOLDER / f"{name}.npz") as content:
            self.arrays = dict(content)
        self.info = json.loads(gzip.decompress(self.arrays.pop("record").tobytes()))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The published state dict, filled; tables that the published code computes hold zeros."""
        tensors = {}
        for key, shape, *const in self.info["state"]:
            filled = np.zeros(shape, np.int64) if const else fill(key, tuple(shape))
            tensors[key] = torch.from_numpy(np.asarray(filled))
        return tensors

    def images(self) -> torch.Tensor:
        """The images that the record was made with."""
        size = self.info["input"]
        return images(size["batch"], size["height"], size["width"], size["seed"])


def fill(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of the parameter or statistic under a published key."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    noise = rng.standard_normal(shape)
    if leaf == "running_mean":
        return (0.1 * noise).astype(np.float32)
    if "bias_table" in leaf or leaf == "rpb":
        return (0.5 * noise).astype(np.float32)
    if max(shape, default=1) == int(np.prod(shape)):
        return (float(leaf in SCALES) + 0.1 * noise).astype(np.float32)
    return (noise / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def images(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Noise on a smooth ramp, (batch, 3, height, width)."""
    noise = np.random.default_rng(seed).standard_normal((batch, 3, height, width))
    ramp = np.linspace(-1, 1, height)[:, None] + np.linspace(-1, 1, width)[None, :]
    return torch.from_numpy((0.7 * noise + ramp).astype(np.float32))
