"""Calls drawn at random against the specification, as `scripts/fuzz_kernels.py` makes them by the thousand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import fuzz_kernels
from fuzz_draw import DRAWN

from tests.kernels.test_backends import OPERATIONS

CALLS = range(240)


@pytest.fixture(scope="module")
def found() -> dict[str, fuzz_kernels.Found]:
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        found = fuzz_kernels.run(CALLS)
    torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_calls_drawn_at_random(operation: str, found: dict[str, fuzz_kernels.Found]) -> None:
    assert not found[operation].failures, "\n".join(found[operation].failures)
    assert found[operation].calls == len(CALLS) // len(OPERATIONS)
    assert set(found[operation].backends) == {"native", "reference", "refused"}


def test_every_operation_with_kernels_is_drawn() -> None:
    assert set(DRAWN) == set(OPERATIONS)


def test_it_finds_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    results = fuzz_kernels.results

    def wrong(call, tensors, wanted):
        found = results(call, tensors, wanted)
        return {n: t * 1.001 if t.dtype == torch.float32 else t for n, t in found.items()}

    monkeypatch.setattr(fuzz_kernels, "results", wrong)
    with torch.random.fork_rng():
        assert any(one.failures for one in fuzz_kernels.run(range(20)).values())
