"""Calls that are too large for the C++ kernels go to the specification, and the explanation says so."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from zoo.kernels import backends, explain_backend

Q = torch.zeros(1, 4, 4, 1, 8)
LARGE = {
    "window_attention": {"size": 1024},
    "neighborhood_attention": {"size": (15, 3)},
    "routing_attention": {"routes": torch.zeros(1, 1, 2, dtype=torch.int64), "region": 512},
    "aggregated_attention": {"pooled_k": torch.zeros(1, 1).expand(600, 600)[None, ..., None, None], "size": 3},
}


@pytest.mark.parametrize("operation", LARGE)
def test_limits_are_explained(operation: str) -> None:
    line = explain_backend(operation, Q, **LARGE[operation])
    assert line.startswith(f"{operation}: reference, the C++ kernels take")
    assert explain_backend(operation, Q) == f"{operation}: native, torch.float32 on the CPU"


def test_every_operation_with_cpp_states_its_limit() -> None:
    for operation in LARGE:
        assert callable(import_module(f"zoo.kernels.{operation}.native").limit)


@pytest.mark.parametrize(("generation", "hip", "fits"), [(75, None, False), (80, None, True), (90, "6.2", False)])
def test_float32_heads_that_do_not_fit_into_a_gpu(
    generation: int, hip: str | None, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "capability", lambda device: generation)
    monkeypatch.setattr(torch.version, "hip", hip)

    def chosen(dtype: torch.dtype, channels: int) -> str:
        q = SimpleNamespace(dtype=dtype, shape=(1, 4, 4, 1, channels), device=torch.device("cuda"))
        return backends._fastest(q)[0]

    assert chosen(torch.float32, 64) == chosen(torch.bfloat16, 128) == "triton"
    assert chosen(torch.float32, 72) == ("triton" if fits else "reference")
