"""Shared by the benchmark scripts: alternating timing, peak memory, name and bandwidth of the machine, CSV rows."""

from __future__ import annotations

import csv
import platform
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from functools import cache, partial
from itertools import accumulate
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import zoo
from zoo.models.optimize import why_no
from zoo.nn.layers.packed import PackedConv

Call = Callable[[], object]
COPIED_MB = {"cuda": 1024, "cpu": 256}
"""Size of the buffer whose copy gives the bandwidth: far beyond any cache."""
L2_BYTES = 256 * 2**20
"""More than the second-level cache of any GPU."""


def race(calls: dict[str, Call], rounds: int, warmup: int = 2) -> dict[str, float]:
    """Median seconds of each call; see `laps`."""
    return {who: statistics.median(seconds) for who, seconds in laps(calls, rounds, warmup).items()}


def laps(calls: dict[str, Call], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each call, in turn, so that a change of the machine's speed hits all of them.

    In its turn a call runs twice, and the second run is timed, so that caches are as if it ran alone.
    """
    seconds: dict[str, list[float]] = {who: [] for who in calls}
    for i in range(rounds + warmup):
        for who, call in calls.items():
            _seconds(call)
            took = _seconds(call)
            if i >= warmup:
                seconds[who].append(took)
    return seconds


@dataclass(frozen=True)
class GpuTime:
    """Median seconds of a call on a GPU, each time with an empty second-level cache.

    `kernels` is a replay of the call as a CUDA graph: what the GPU alone needs. `eager` is the call as Python makes it,
    until the GPU has finished. `host` is what Python takes until the call returns. A call that cannot be captured has
    no replay: then `kernels` is `eager`, and `captured` is False.
    """

    kernels: float
    eager: float
    host: float
    captured: bool


def gpu_time(call: Call, rounds: int = 25) -> GpuTime:
    """Times a call on the current GPU.

    The host's share of an eager call is several times a kernel's time, so a timer around eager calls would show Python.
    """
    _warm_up(call)
    eager = statistics.median(_eager_seconds(call) for _ in range(rounds))
    host = statistics.median(_host_seconds(call) for _ in range(10))
    if why_it_waits(call):
        return GpuTime(eager, eager, host, False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return GpuTime(_cold_median(graph.replay, rounds), eager, host, True)


@cache
def copy_time(size: int) -> float:
    """Seconds in which the current GPU copies so much that `size` bytes are read and written in all."""
    source = torch.empty(max(1, size // 2), dtype=torch.uint8, device="cuda").random_(0, 255)
    target = torch.empty_like(source)
    return gpu_time(lambda: target.copy_(source)).kernels


def why_it_waits(call: Call) -> str:
    """Where a call waits for the GPU, or an empty string; other errors are passed on.

    A call that waits cannot be captured, and a capture that fails leaves a broken process.
    """
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def gpu_is_lost() -> bool:
    """Whether an error has made the GPU unusable in this process: an illegal access does, a lack of memory does not."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.zeros(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    except RuntimeError as error:
        return not isinstance(error, torch.OutOfMemoryError)
    return False


def kernel_times(call: Call, rounds: int = 5) -> dict[str, float]:
    """Mean seconds of each GPU kernel of a call with warm caches, the longest first, as the profiler sees them."""
    call()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        for _ in range(rounds):
            call()
        torch.cuda.synchronize()
    events = [e for e in record.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    seconds = {event.key: event.self_device_time_total / rounds / 1e6 for event in events}
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def peak_memory(call: Call, kind: str = "cpu") -> float:
    """The peak megabytes that a call holds in tensors, in addition to those that existed before."""
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
    """Bytes per second read and written by a copy of a large buffer."""
    source = torch.zeros(COPIED_MB[kind] * 2**20, dtype=torch.uint8, device=kind)
    target = torch.empty_like(source)
    seconds = race({"copy": lambda: target.copy_(source)}, rounds=10)["copy"]
    return 2 * source.numel() / seconds


@cache
def product_rate(dtype: str, threads: int) -> float:
    """Operations per second of a matrix product in cache by the threads set: the faster of PyTorch's and ours."""
    layer, x = nn.Linear(512, 512), torch.randn(1, 16, 32, 512)
    kind = getattr(torch, dtype)
    layers = {"torch": (deepcopy(layer).to(kind), x.to(kind))}
    if not why_no(kind):
        layers["packed"] = (PackedConv(layer, kind), x)
    with torch.inference_mode():
        times = laps({who: partial(module, given) for who, (module, given) in layers.items()}, 200)
    return 2 * x.numel() * layer.out_features / min(map(min, times.values()))


def default_device() -> str:
    """The GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device(kind: str = "cpu") -> str:
    """The name of the GPU or of the processor."""
    if kind == "cuda":
        return torch.cuda.get_device_name()
    return f"{_processor()} ({instructions()})"


def instructions() -> str:
    """The processor's vectors, as PyTorch calls them, and whether it multiplies bfloat16 numbers."""
    return torch.backends.cpu.get_cpu_capability() + (" BF16" if not why_no(torch.bfloat16) else "")


def _processor() -> str:
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
            header = next(csv.reader(file), None)
        if header != list(rows[0]):
            raise ValueError(f"{path} has the columns {header}, expected {list(rows[0])}")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if new:
            writer.writeheader()
        writer.writerows(rows)


def _warm_up(call: Call) -> None:
    """Warm up on a separate stream, as a graph capture requires."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


def _cold_median(call: Call, rounds: int) -> float:
    evicted_by = torch.empty(L2_BYTES, dtype=torch.uint8, device="cuda")
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for begin, end in pairs:
        evicted_by.zero_()  # takes longer than the host needs to queue what follows
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3


def _eager_seconds(call: Call) -> float:
    torch.empty(L2_BYTES, dtype=torch.uint8, device="cuda").zero_()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _host_seconds(call: Call) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start
