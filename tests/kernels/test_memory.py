"""What an operation allocates beside its arguments: a small multiple of them, whatever the window."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import zoo.kernels
from tests.kernels.test_backends import CASES, _module, _name
from zoo.kernels import native
from zoo.kernels.routing_attention.cases import Case

FORWARD, TRAINING = 0.75, 3.0
"""Most bytes at once, beside the arguments, in units of the arguments' own bytes."""
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="measures a GPU's memory")


def _bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(t.nbytes for t in tensors.values())


def _peak_on_cpu(step) -> int:
    """Most bytes that `step` holds in tensors at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def _peak_on_gpu(step) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def _steps(operation: str, case, tensors: dict[str, torch.Tensor]):
    call, settings = getattr(zoo.kernels, operation), case.settings()

    def forward() -> None:
        with torch.no_grad():
            call(**tensors, **settings)

    def training() -> None:
        leaves = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in tensors.items()}
        out = call(**leaves, **settings)
        out.backward(out.detach())

    return forward, training


@pytest.mark.parametrize(("operation", "case"), [c for c in CASES if c[1] in _module(c[0]).MODELS], ids=_name)
def test_native_kernels_are_lean(operation: str, case) -> None:
    assert not native.why_not()
    tensors = case.tensors(4, dtype=torch.float32)
    forward, training = _steps(operation, case, tensors)
    forward()
    assert _peak_on_cpu(forward) < FORWARD * _bytes(tensors)
    assert _peak_on_cpu(training) < TRAINING * _bytes(tensors)


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize(("operation", "case"), [c for c in CASES if c[1] in _module(c[0]).MODELS], ids=_name)
def test_triton_kernels_are_lean(operation: str, case) -> None:
    tensors = case.tensors(16, dtype=torch.bfloat16, device="cuda")
    forward, training = _steps(operation, case, tensors)
    training()
    assert _peak_on_gpu(forward) < FORWARD * _bytes(tensors)
    assert _peak_on_gpu(training) < TRAINING * _bytes(tensors)


LARGE = (
    Case("biformer_tiny stage 0 at 600x500", (154, 126), 2, 32, (22, 18), 1),
    Case("biformer_tiny stage 1 at 600x500", (77, 63), 4, 32, (11, 9), 4),
    Case("biformer_tiny stage 2 at 600x500", (42, 35), 8, 32, (6, 5), 16),
)
"""Where gathered keys and values take tens of gigabytes: batches of 20 images of 600 x 500 pixels."""


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE, ids=_name)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, ON_GPU])])
def test_routing_attention_fits_at_600_by_500(case: Case, device: str) -> None:
    tensors = case.tensors(20, dtype=torch.float32, device=device)
    forward, training = _steps("routing_attention", case, tensors)
    peak = _peak_on_cpu if device == "cpu" else _peak_on_gpu
    assert peak(forward) < FORWARD * _bytes(tensors)
    assert peak(training) < TRAINING * _bytes(tensors)
