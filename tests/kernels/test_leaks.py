"""What is not finite in one image or head of a map stays there, whatever shares a tile of a Triton kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.kernels.test_backends import AWKWARD, DEVICE, QUICK, _name, _results
from zoo.kernels import use_backend


@pytest.mark.slow
@pytest.mark.parametrize("name", ["k", "v"] if DEVICE == "cpu" else ["q", "k", "v"])
@pytest.mark.parametrize(("operation", "case"), QUICK if DEVICE == "cpu" else AWKWARD, ids=_name)
def test_nan_stays_in_its_image_and_head(operation: str, case, name: str) -> None:
    tensors = replace(case, heads=2).tensors(2, dtype=torch.float32, device=DEVICE)
    tensors[name] = tensors[name].clone()
    tensors[name][0, case.shape[0] // 2, case.shape[1] // 2, 0, 1] = float("nan")
    with use_backend("triton"):
        found = _results(operation, case, tensors)
    assert found["out"][0, :, :, 0].isnan().any()
    for result in ("out", "q", "k", "v"):
        assert found[result][1].isfinite().all(), result
        assert found[result][0, :, :, 1].isfinite().all(), result
