"""Which of two layers is faster on this machine, measured once for a shape and kept beside the built kernels."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.files import write_json
from zoo.kernels.build import CannotBuildError, cache, identity

ROUNDS, LONGEST = 5, 0.05
"""Measurements of each layer at least, and seconds for all of them at most."""
GAIN = 0.9
"""How fast a packed layer must be at least: it saves passes for the activation, which are not measured."""


class Tactics:
    """Measurements by layer, shape and number of threads; `keep` writes new ones."""

    def __init__(self) -> None:
        self._path = _path()
        self._known = _read(self._path)
        self._new = False

    def is_faster(self, packed: nn.Module, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> bool:
        """Whether `packed` is faster than `layer`, or as fast, on tensors like `inputs`."""
        x = inputs[0]
        key = f"{layer} {packed} {tuple(x.shape)} {x.stride()} {torch.get_num_threads()}"
        gain = self._known.get(key)
        if not isinstance(gain, float):
            gain = self._known[key] = round(_gain(packed, layer, inputs), 3)
            self._new = True
        return gain >= GAIN

    def keep(self) -> None:
        """Write what was measured, if that is possible."""
        if self._new and self._path is not None:
            with suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, {**_read(self._path), **self._known})


def _gain(packed: nn.Module, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """How many times as fast `packed` is."""
    maps = inputs
    if isinstance(layer, nn.Conv2d):
        maps = (inputs[0].permute(0, 2, 3, 1).contiguous(),)
        inputs = (maps[0].permute(0, 3, 1, 2),)
    calls = [(layer, inputs), (packed, maps)]
    least = [float("inf")] * len(calls)
    start = time.perf_counter()
    for turn in range(1000):
        for i, (module, given) in enumerate(calls):
            began = time.perf_counter()
            module(*given)
            least[i] = min(least[i], time.perf_counter() - began)
        if turn >= ROUNDS and time.perf_counter() - start > LONGEST:
            break
    return least[0] / least[1]


def _path() -> Path | None:
    with suppress(CannotBuildError, RuntimeError, OSError):
        return cache() / f"{identity()}-{torch.__version__}.json"
    return None


def _read(path: Path | None) -> dict[str, Any]:
    with suppress(OSError, ValueError, AttributeError):
        known = json.loads(path.read_text("utf-8"))  # type: ignore[union-attr]  # there may be none
        return known if isinstance(known, dict) else {}
    return {}
