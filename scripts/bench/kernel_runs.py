"""Measures an operation of `zoo.kernels` with our kernels, the specification and other implementations.

On a GPU: replays of CUDA graphs with cold caches, and beside them the time of an eager call and of the host alone. The
floor is a copy of as many bytes as the tensors of the call have, each read or written once. On the CPU: medians of
rounds in which all take turns, and the floor follows from the bandwidth of a large copy; what fits into caches may beat
it. Implementations whose results differ from the reference are not timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
import triton

import zoo.kernels
from bench.kernel_peers import Peer, peers
from bench.measure import GpuTime, bandwidth, copy_time, gpu_is_lost, gpu_time, peak_memory, race, setting
from zoo.kernels import use_backend
from zoo.kernels.backends import choose

BOUND = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""The largest error of an output, relative to its maximum, for which an implementation is timed."""
MODES = ("forward", "training")
OURS = ("triton", "native")
CHECKED_IMAGES = 4
"""The number of images on which results are checked, for which the specification has enough memory."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Job:
    """What is measured in one go: a case of an operation, and how it is called."""

    operation: str
    case: object
    mode: str
    batch: int
    dtype: torch.dtype
    device: str
    rounds: int = 25

    def by(self, backend: str, compiled: bool = False) -> Callable[..., torch.Tensor]:
        """The operation as a function of its tensors by name, computed by a backend."""
        function = getattr(zoo.kernels, self.operation)
        function = torch.compile(function, dynamic=False) if compiled else function

        def run(**tensors: torch.Tensor) -> torch.Tensor:
            with use_backend(backend):
                return function(**tensors, **self.case.settings())

        return run


def measure(job: Job, problems: list[str], only: Callable[[str], bool] = lambda provider: True) -> Iterator[dict]:
    """A row for each provider that computes what the reference computes, ours first, as soon as it is timed.

    The reasons for omitting others are added to `problems`.
    """
    torch.compiler.reset()
    torch.manual_seed(0)
    tensors = job.case.tensors(job.batch, dtype=job.dtype, device=job.device)
    upstream = torch.randn_like(tensors["q"]) if job.mode == "training" else None
    truth, least = specified(job, tensors, upstream), moved(tensors, upstream)
    steps, errors = {}, {}
    for name, make in providers(job, tensors["q"], only).items():
        with _noted(job, name, problems):
            peer = make()
            if peer is None:
                continue
            given = {name: t for name, t in tensors.items() if name not in peer.without}
            step = partial(results, peer.call, leaves_of(given, upstream), upstream)
            expected = truth if not peer.without else specified(job, given, upstream)
            errors[peer.name], steps[peer.name] = error_of(job, peer, step(), expected), step
    times = {} if job.device == "cuda" else _raced(steps, job.rounds)
    floor = copy_time(least) if job.device == "cuda" else least / _copied(job.device)
    for name, step in steps.items():
        with _noted(job, name, problems):
            times[name] = times[name] if name in times else gpu_time(step, job.rounds)
            yield row_of(job, name, times, floor, peak_memory(step, job.device), errors[name])


@contextmanager
def _noted(job: Job, name: str, problems: list[str]) -> Iterator[None]:
    """An implementation that fails to compile, runs out of memory or is wrong is omitted, unless the GPU is lost."""
    try:
        yield
    except Exception as error:
        if gpu_is_lost():
            raise
        who = f"OURS, {name}" if name in OURS else name
        reason = str(error).strip().partition("\n")[0][:120]
        problems.append(f"{job.operation}, {job.case.name}, {job.mode}, {who}: {type(error).__name__}: {reason}")


def with_kernels() -> list[str]:
    """The operations that have an implementation beside the reference."""
    return sorted(path.parent.name for path in Path(zoo.kernels.__file__).parent.glob("*/operator.py"))


def providers(job: Job, q: torch.Tensor, only: Callable[[str], bool]) -> dict[str, Callable[[], Peer | None]]:
    """What makes ours, the specification eager and compiled, and the peers: those of whose names `only` holds."""
    backend = choose(q)
    own = [] if backend == "reference" else [backend]
    found = {name: partial(Peer, name, job.by(name)) for name in (*own, "reference")}
    found["reference compiled"] = lambda: Peer("reference compiled", job.by("reference", compiled=True))
    found = {name: make for name, make in found.items() if only(name)}
    others = peers(job.operation, job.case, job.batch, job.device, job.mode == "training") if only("peers") else {}
    return found | others


def leaves_of(tensors: Tensors, upstream: torch.Tensor | None) -> Tensors:
    """The arguments of a step, which record gradients in training."""
    training = upstream is not None
    return {name: t.detach().requires_grad_(training and t.is_floating_point()) for name, t in tensors.items()}


def results(call: Callable, leaves: Tensors, upstream: torch.Tensor | None) -> Tensors:
    """One step: the output and, in training, the gradients of all arguments by name."""
    with torch.set_grad_enabled(upstream is not None):
        out = call(**leaves)
    if upstream is None:
        return {"out": out}
    wanted = {name: t for name, t in leaves.items() if t.requires_grad}
    gradients = torch.autograd.grad(out, list(wanted.values()), upstream)
    return {"out": out, **dict(zip(wanted, gradients, strict=True))}


def of_images(tensors: Tensors, images: slice) -> Tensors:
    """The tensors of some images; biases are common to all."""
    return {name: t if is_common(name) else t[images] for name, t in tensors.items()}


def is_common(name: str) -> bool:
    """Whether an argument is shared by all images, so that its gradient is a sum over images."""
    return "bias" in name


def specified(job: Job, tensors: Tensors, upstream: torch.Tensor | None) -> Tensors:
    """What the reference gives for the first images in single precision.

    Gradients of shared arguments are included only if these are all images.
    """
    some = of_images(tensors, slice(CHECKED_IMAGES))
    exact = {name: t.float() if t.is_floating_point() else t for name, t in some.items()}
    upstream = None if upstream is None else upstream[:CHECKED_IMAGES].float()
    truth = results(job.by("reference"), leaves_of(exact, upstream), upstream)
    return {name: t for name, t in truth.items() if job.batch <= CHECKED_IMAGES or not is_common(name)}


def error_of(job: Job, peer: Peer, found: Tensors, truth: Tensors) -> float:
    """The largest error of the output and the gradients, each relative to its largest number.

    Raises:
        ValueError: if the output is wrong, or, of our own kernels, a gradient.
    """
    found = of_images(found, slice(CHECKED_IMAGES))
    errors = {n: ((found[n].float() - t).abs().max() / t.abs().max()).item() for n, t in truth.items()}
    for name in errors if peer.name in OURS else ["out"]:
        if not errors[name] < BOUND[job.dtype]:
            raise ValueError(f"{name} is wrong by {errors[name]:.1e} of its largest number")
    return max(errors.values())


def moved(tensors: Tensors, upstream: torch.Tensor | None) -> int:
    """The least bytes of a step: arguments read and output written, each once in a pass.

    The backward pass reads the arguments, the output and its gradient, and writes the gradients of the arguments.
    """
    inputs = sum(t.numel() * t.element_size() for t in tensors.values())
    gradients = sum(t.numel() * t.element_size() for t in tensors.values() if t.is_floating_point())
    out = tensors["q"].numel() * tensors["q"].element_size()
    return inputs + out if upstream is None else 2 * inputs + 2 * out + gradients


def _raced(steps: dict[str, Callable], rounds: int) -> dict[str, GpuTime]:
    """On the CPU all take turns."""
    return {name: GpuTime(t, t, math.nan, False) for name, t in race(steps, rounds).items()}


@cache
def _copied(device: str) -> float:
    """The bandwidth of this device, measured once."""
    return bandwidth(device)


def row_of(job: Job, name: str, times: dict[str, GpuTime], floor: float, memory: float, error: float) -> dict:
    """The row of one provider."""
    ours = next((times[own].kernels for own in OURS if own in times), math.nan)
    time = times[name]
    return {
        **setting(job.device, triton=triton.__version__),
        "operation": job.operation,
        "case": job.case.name,
        "provider": name,
        "mode": job.mode,
        "batch": job.batch,
        "dtype": str(job.dtype).removeprefix("torch."),
        "height": job.case.shape[0],
        "width": job.case.shape[1],
        "heads": job.case.heads,
        "head_dim": job.case.head_dim,
        "settings": " ".join(f"{key}={value}" for key, value in job.case.settings().items()),
        "median_ms": round(1e3 * time.kernels, 4),
        "eager_ms": round(1e3 * time.eager, 4),
        "host_ms": "" if math.isnan(time.host) else round(1e3 * time.host, 4),
        "graph": time.captured,
        "ratio": round(time.kernels / ours, 3),
        "floor_ms": round(1e3 * floor, 4),
        "floor_share": round(floor / time.kernels, 3),
        "peak_mb": round(memory, 1),
        "error": f"{error:.1e}",
    }
