"""Random numbers that depend on the seed and on where a run is, not on how it got there.

A run that is taken up again, or whose images are read by other workers, therefore draws the same ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mix(*numbers: int) -> int:
    """A seed of 63 bits made of several numbers."""
    low, high = np.random.SeedSequence(numbers).generate_state(2, np.uint32).tolist()
    return (low << 31) ^ high


def seed_all(*numbers: int) -> None:
    """Seed Python, numpy and torch, on every device, with `mix(*numbers)`."""
    seed = mix(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def drawn_from(*numbers: int) -> Iterator[None]:
    """Within this context Python, numpy and torch on the CPU draw from `mix(*numbers)`; afterwards as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = mix(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
