"""Before all phases: what the device is, with which software, and how fast it copies."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch
import triton

from bench.measure import copy_time, gpu_time, setting
from gpu.run import Run
from zoo.kernels import use_backend, window_attention

COPIES = (100, 300, 2000)
"""Megabytes read and written by the copies that are timed."""


def note_machine(run: Run, _: str) -> None:
    """A row with the device and, on a GPU, its state, the rates of copies and the time of the smallest kernel.

    A row `refused` if there is no such device, or Triton cannot run anything on it.
    """
    if run.device == "cuda" and not torch.cuda.is_available():
        run.write("refused", note="PyTorch finds no GPU; --device cpu rehearses with the C++ kernels")
        return
    row = setting(run.device, triton=triton.__version__) | {"on": run.device, "commit": _commit()}
    if run.device == "cuda":
        try:
            _try_triton()
        except Exception as error:  # of a compiler, a cache that cannot be written, a driver
            run.write("refused", note=f"Triton cannot run a kernel here: {type(error).__name__}: {str(error)[:400]}")
            return
        row |= {"multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count, "state": _state()}
        row |= {f"copy of {mb} MB, TB/s": round(mb / copy_time(mb * 10**6) / 1e6, 2) for mb in COPIES}
        one = torch.zeros(1, device="cuda")
        row["smallest kernel, us"] = round(1e6 * gpu_time(lambda: one.add_(1)).kernels, 1)
    run.write("machine", **row)


def _try_triton() -> None:
    """Run the smallest of our kernels."""
    q = torch.randn(1, 4, 4, 1, 16, device="cuda", dtype=torch.bfloat16)
    with use_backend("triton"):
        window_attention(q, q, q, (4, 4))
    torch.cuda.synchronize()


def _state() -> str:
    """Clocks, limits and the driver, as its tool tells them; empty without the tool."""
    asked = "driver_version,clocks.sm,clocks.mem,power.limit,clocks_throttle_reasons.active,mig.mode.current"
    return _said("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader")


def _commit() -> str:
    """Of this checkout; empty where there is no git."""
    return _said("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD")


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
