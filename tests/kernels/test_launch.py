"""How Triton kernels are launched, shown with a stand-in for a machine of two GPUs."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.kernels import launch as door


class Kernel:
    """Notes on which device it would run."""

    def __init__(self) -> None:
        self.ran: list[tuple[int, tuple, dict]] = []

    def __getitem__(self, grid: tuple[int, ...]):
        def run(*arguments: object, **options: object) -> None:
            self.ran.append((torch.cuda.current_device(), grid, options))

        return run


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first GPU is the current one, the other is an older one."""
    current = [0]

    @contextmanager
    def device(chosen: torch.device):
        before, current[0] = current[0], chosen.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda chosen: ((9, 0), (7, 5))[chosen.index])
    door.capability.cache_clear()
    yield
    door.capability.cache_clear()


def _tensor(device: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(2, 3, dtype=dtype, device=device)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.usefixtures("two_gpus")
def test_kernels_run_where_their_tensors_are(index: int) -> None:
    kernel = Kernel()
    door.launch(kernel, (4,), None, 1.0, _tensor(f"cuda:{index}"), num_warps=2)
    assert kernel.ran == [(index, (4,), {"num_warps": 2})]
    assert torch.cuda.current_device() == 0


def test_an_empty_grid_runs_nothing() -> None:
    kernel = Kernel()
    door.launch(kernel, (0,), torch.empty(0))
    assert kernel.ran == []


@pytest.mark.usefixtures("two_gpus")
def test_float32_is_multiplied_as_pytorch_multiplies_it() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert door.input_precision(_tensor("cuda:0")) == "ieee"
        torch.set_float32_matmul_precision("high")
        assert door.input_precision(_tensor("cuda:0")) == "tf32"
        assert door.input_precision(_tensor("cuda:0", torch.bfloat16)) == "ieee"
        assert door.input_precision(_tensor("cuda:1")) == "ieee", "tensor cores of that generation have no TF32"
        assert door.input_precision(torch.empty(2)) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)
