"""Before all phases: what the device is, with which software, and how fast it copies."""

from __future__ import annotations

import torch
import triton
from measure import copy_time, gpu_time, setting

from gpu.run import Run

COPIES = (100, 300, 2000)
"""Megabytes read and written by the copies that are timed."""


def note_machine(run: Run, _: str) -> None:
    """A row with the device and, on a GPU, the rates of copies and the time of the smallest kernel.

    Raises:
        SystemExit: if there is no such device.
    """
    if run.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU; --device cpu rehearses with the C++ kernels")
    row = setting(run.device, triton=triton.__version__)
    if run.device == "cuda":
        row |= {f"copy of {mb} MB, TB/s": round(mb / copy_time(mb * 10**6) / 1e6, 2) for mb in COPIES}
        one = torch.zeros(1, device="cuda")
        row["smallest kernel, us"] = round(1e6 * gpu_time(lambda: one.add_(1)).kernels, 1)
    run.write("machine", **row)
