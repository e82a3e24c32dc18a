"""What the benchmark scripts share: timing in turn, peak memory, name and bandwidth of the machine, CSV rows."""

from __future__ import annotations

import csv
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import zoo

Call = Callable[[], object]
COPIED_MB = {"cuda": 1024, "cpu": 256}
"""Size of the buffer whose copy gives the bandwidth: far beyond any cache."""


def race(calls: dict[str, Call], rounds: int, warmup: int = 2) -> dict[str, float]:
    """Median seconds of each call, in turn, so that a change of the machine's speed hits all of them.

    In its turn a call runs twice, and the second is timed: caches hold what is its own, as where it runs alone.
    """
    seconds: dict[str, list[float]] = {who: [] for who in calls}
    for i in range(rounds + warmup):
        for who, call in calls.items():
            _seconds(call)
            took = _seconds(call)
            if i >= warmup:
                seconds[who].append(took)
    return {who: statistics.median(values) for who, values in seconds.items()}


def cold_median(call: Call) -> float:
    """Median seconds of a call on the GPU, its caches emptied before each."""
    from triton.testing import do_bench

    return do_bench(call, return_mode="median") / 1e3


def peak_memory(call: Call, kind: str = "cpu") -> float:
    """The most megabytes that a call holds in tensors at once, beside what is there before it."""
    if kind == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns()))
    return max(accumulate(sizes), default=0) / 2**20


def bandwidth(kind: str) -> float:
    """Bytes a second that a copy of a large buffer reads and writes."""
    source = torch.zeros(COPIED_MB[kind] * 2**20, dtype=torch.uint8, device=kind)
    target = torch.empty_like(source)
    seconds = race({"copy": lambda: target.copy_(source)}, rounds=10)["copy"]
    return 2 * source.numel() / seconds


def default_device() -> str:
    """The GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device(kind: str = "cpu") -> str:
    """The name of the GPU or of the processor."""
    if kind == "cuda":
        return torch.cuda.get_device_name()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def setting(kind: str, **versions: str) -> dict[str, object]:
    """The first columns of a row: when, where and with which software it was measured."""
    return {
        "date": date.today().isoformat(),
        "device": device(kind),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
        "zoo": zoo.__version__,
    }


def append(path: Path, rows: list[dict]) -> None:
    """Add rows to a CSV file, with a header if it is new.

    Raises:
        ValueError: if the file has other columns.
    """
    new = not path.exists()
    if not new:
        with path.open(newline="") as file:
            header = next(csv.reader(file))
        if header != list(rows[0]):
            raise ValueError(f"{path} has the columns {header}, expected {list(rows[0])}")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if new:
            writer.writeheader()
        writer.writerows(rows)


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start
