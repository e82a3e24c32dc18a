"""Random numbers that depend only on the seed and the position in a run.

A resumed run, or one with a different number of workers, therefore draws the same numbers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mix(*numbers: int) -> int:
    """A 63-bit seed computed from several numbers."""
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
    """Within this context Python, numpy and torch on the CPU draw from `mix(*numbers)`; their state is restored."""
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
