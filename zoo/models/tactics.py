"""What is faster on this machine, measured once for a shape and kept beside the built kernels."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from zoo.files import write_json
from zoo.kernels.build import CannotBuildError, cache, identity

ROUNDS, LONGEST = 5, 0.05
"""Measurements of each call at least, and seconds for all of them at most, if that many are through."""
PARTS = (1, 2)
"""Images at once that are tried in place of a whole batch."""
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
        return self._measured(key, lambda: _gain(packed, layer, inputs)) >= GAIN

    def images_at_once(self, stage: nn.Module, x: torch.Tensor) -> int | None:
        """Into how many images a stage best divides a batch like `x`; None if it had better not."""
        key = hashlib.sha256(f"{stage} {tuple(x.shape)} {torch.get_num_threads()}".encode()).hexdigest()
        choices = [n for n in PARTS if n < len(x)]
        best = self._measured(key, lambda: _best_part(stage, x, choices))
        return int(best) if best in choices else None

    def keep(self) -> None:
        """Write what was measured, if that is possible."""
        if self._new and self._path is not None:
            with suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, {**_read(self._path), **self._known})

    def _measured(self, key: str, measure: Callable[[], float]) -> float:
        if key not in self._known:
            self._known[key] = round(measure(), 3)
            self._new = True
        return self._known[key]


def _gain(packed: nn.Module, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """How many times as fast `packed` is."""
    maps = inputs
    if isinstance(layer, nn.Conv2d):
        maps = (inputs[0].permute(0, 2, 3, 1).contiguous(),)
        inputs = (maps[0].permute(0, 3, 1, 2),)
    plain, own = _least([lambda: layer(*inputs), lambda: packed(*maps)])
    return plain / own


def _best_part(stage: nn.Module, x: torch.Tensor, choices: Sequence[int]) -> float:
    """The number of images, of `choices` or all, with which a stage is fastest."""

    def run(images: int) -> Callable[[], object]:
        return lambda: [stage(part) for part in x.split(images)]

    numbers = [*choices, len(x)]
    times = _least([run(images) for images in numbers])
    return float(numbers[times.index(min(times))])


def _least(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Seconds of the fastest of several runs of each call, in turn."""
    least = [float("inf")] * len(calls)
    start = time.perf_counter()
    for turn in range(1000):
        for i, call in enumerate(calls):
            began = time.perf_counter()
            call()
            least[i] = min(least[i], time.perf_counter() - began)
        if turn >= ROUNDS and time.perf_counter() - start > LONGEST:
            break
    return least


def _path() -> Path | None:
    with suppress(CannotBuildError, RuntimeError, OSError):
        return cache() / f"{identity()}-{torch.__version__}.json"
    return None


def _read(path: Path | None) -> dict[str, float]:
    """The numbers in a file that may be missing, damaged or no file at all."""
    with suppress(OSError, ValueError, RecursionError):
        if path is not None and path.is_file():
            known = json.loads(path.read_text("utf-8"))
            known = known if isinstance(known, dict) else {}
            return {key: value for key, value in known.items() if isinstance(value, float)}
    return {}
