"""Times the operations of `zoo.kernels` against their specification, PyTorch's own attention and other kernels.

    python scripts/bench_kernels.py                                     # every operation and case of a real variant
    python scripts/bench_kernels.py --operation window_attention --case maxvit --dtype float16 --mode forward
    python scripts/bench_kernels.py --csv benchmarks/kernels.csv --markdown benchmarks/kernels.md --plot kernels.png

On a GPU: medians of `triton.testing.do_bench`, which empties the caches before each run. On the CPU: medians of rounds
in which all take turns. The floor is the time in which the tensors of a call can be read once and its results written
once, at the bandwidth of a copy measured just before; what fits into a processor's caches may beat it. What computes
something else than the reference is not timed. Exit status 1 if that, or any failure, befalls one of our own kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
import triton
import typer
from kernel_peers import Peer, peers
from kernel_tables import plot, show, write_markdown
from measure import append, bandwidth, cold_median, default_device, peak_memory, race, setting

import zoo.kernels
from zoo.kernels import use_backend
from zoo.kernels.backends import choose

BOUND = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest error of an output that is timed, relative to its largest number."""
MODES = ("forward", "training")
SIDES = (14, 28, 56, 112)
"""Maps of the plot, which shows the first case of each operation at these sizes."""


OURS = ("triton", "native")


@dataclass(frozen=True)
class Job:
    """What is measured in one go: a case of an operation, and how it is called."""

    operation: str
    case: object
    mode: str
    batch: int
    dtype: torch.dtype
    device: str
    rounds: int


def main(
    operation: Annotated[list[str] | None, typer.Option(help="Names; all that have kernels of ours.")] = None,
    case: Annotated[str, typer.Option(help="Part of a case's name.")] = "",
    batch: Annotated[int | None, typer.Option(min=1, help="Images; 64 on a GPU, 4 on the CPU.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, float16; by device.")] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = default_device(),
    mode: Annotated[list[str], typer.Option(help="forward; training: with the gradients of all inputs.")] = MODES,
    rounds: Annotated[int, typer.Option(min=3, help="Timed rounds on the CPU.")] = 20,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Rows are appended.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Tables for a reader, written anew.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Time against resolution, as a picture.")] = None,
) -> None:
    """Print a table of time, floor and memory of every provider."""
    dtypes = [getattr(torch, name) for name in dtype or (["bfloat16"] if device == "cuda" else ["float32"])]
    batch = batch or (64 if device == "cuda" else 4)
    rows, problems = [], []
    jobs = [
        Job(name, entry, way, batch, kind, device, rounds)
        for name in operation or with_kernels()
        for entry in import_module(f"zoo.kernels.{name}.cases").MODELS
        if case in entry.name
        for kind in dtypes
        for way in mode
    ]
    for job in jobs:
        rows += (found := measure(job, problems))
        show(found)
        if csv_file is not None and found:
            append(csv_file, found)
    if markdown is not None:
        write_markdown(markdown, rows)
    if plot_file is not None:
        first = {job.operation: job for job in reversed(jobs) if job.mode == mode[0] and job.dtype == dtypes[0]}
        curves = {name: curve(job, problems) for name, job in first.items()}
        plot(plot_file, curves)
        if csv_file is not None:
            append(csv_file, [row for found in curves.values() for row in found])
    for problem in problems:
        print(problem)
    raise typer.Exit(1 if any("OURS" in problem for problem in problems) else 0)


def with_kernels() -> list[str]:
    """The operations that have an implementation beside the reference."""
    return sorted(path.parent.name for path in Path(zoo.kernels.__file__).parent.glob("*/operator.py"))


def measure(job: Job, problems: list[str]) -> list[dict]:
    """A row for each provider that computes what the reference computes; why others do not goes to `problems`."""
    torch.compiler.reset()
    torch.manual_seed(0)
    tensors = job.case.tensors(job.batch, dtype=job.dtype, device=job.device)
    upstream = torch.randn_like(tensors["q"]) if job.mode == "training" else None
    steps, errors = {}, {}
    for peer in providers(job, tensors):
        given = {name: t for name, t in tensors.items() if name not in peer.without}
        step = partial(results, peer.call, leaves_of(given, upstream), upstream)
        try:
            errors[peer.name] = checked(job, peer, step(), given, upstream)
            steps[peer.name] = step
        except Exception as error:  # of a compiler, of memory, of the check: whoever fails is left out
            who = f"OURS, {peer.name}" if peer.name in OURS else peer.name
            reason = str(error).strip().partition("\n")[0][:120]
            problems.append(f"{job.operation}, {job.case.name}, {job.mode}, {who}: {type(error).__name__}: {reason}")
    seconds = race(steps, job.rounds) if job.device == "cpu" else {name: cold_median(s) for name, s in steps.items()}
    floor = moved(tensors, upstream) / copied(job.device)
    memory = {name: peak_memory(step, job.device) for name, step in steps.items()}
    return [row_of(job, name, seconds, floor, memory[name], errors[name]) for name in steps]


def providers(job: Job, tensors: dict[str, torch.Tensor]) -> Iterator[Peer]:
    """Ours, the specification eager and compiled, and the peers."""
    function, settings = getattr(zoo.kernels, job.operation), job.case.settings()

    def by(backend: str, call: Callable) -> Callable:
        def run(**tensors):
            with use_backend(backend):
                return call(**tensors, **settings)

        return run

    backend = choose(tensors["q"])
    if backend != "reference":
        yield Peer(backend, by(backend, function))
    yield Peer("reference", by("reference", function))
    yield Peer("reference compiled", by("reference", torch.compile(function, dynamic=False)))
    yield from peers(job.operation, job.case, job.batch, job.device, job.mode == "training")


def leaves_of(tensors: dict[str, torch.Tensor], upstream: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The arguments of a step, which record gradients in training."""
    training = upstream is not None
    return {name: t.detach().requires_grad_(training and t.is_floating_point()) for name, t in tensors.items()}


def results(call: Callable, leaves: dict, upstream: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """One step: the output and, in training, the gradients of all arguments by name."""
    with torch.set_grad_enabled(upstream is not None):
        out = call(**leaves)
    if upstream is None:
        return {"out": out}
    wanted = {name: t for name, t in leaves.items() if t.requires_grad}
    gradients = torch.autograd.grad(out, list(wanted.values()), upstream)
    return {"out": out, **dict(zip(wanted, gradients, strict=True))}


def checked(job: Job, peer: Peer, found: dict, tensors: dict, upstream: torch.Tensor | None) -> float:
    """The largest error of the output and the gradients, each relative to its largest number.

    Raises:
        ValueError: if the output is wrong, or, of our own kernels, a gradient.
    """
    exact = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    upstream = None if upstream is None else upstream.float()
    call = partial(getattr(zoo.kernels, job.operation), **job.case.settings())
    with use_backend("reference"):
        truth = results(call, leaves_of(exact, upstream), upstream)
    errors = {n: ((found[n].float() - t).abs().max() / t.abs().max()).item() for n, t in truth.items()}
    for name in errors if peer.name in OURS else ["out"]:
        if not errors[name] < BOUND[job.dtype]:
            raise ValueError(f"{name} is wrong by {errors[name]:.1e} of its largest number")
    return max(errors.values())


def moved(tensors: dict[str, torch.Tensor], upstream: torch.Tensor | None) -> int:
    """The least bytes of a step: arguments read and output written; in training, again with gradients beside them."""
    inputs = sum(t.numel() * t.element_size() for t in tensors.values())
    gradients = sum(t.numel() * t.element_size() for t in tensors.values() if t.is_floating_point())
    out = tensors["q"].numel() * tensors["q"].element_size()
    return inputs + out if upstream is None else 2 * inputs + 2 * out + gradients


@cache
def copied(device: str) -> float:
    """The bandwidth of this device, measured once."""
    return bandwidth(device)


def row_of(job: Job, name: str, seconds: dict[str, float], floor: float, memory: float, error: float) -> dict:
    """The row of one provider."""
    ours = next((seconds[own] for own in OURS if own in seconds), math.nan)
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
        "median_ms": round(1e3 * seconds[name], 4),
        "ratio": round(seconds[name] / ours, 3),
        "floor_ms": round(1e3 * floor, 4),
        "floor_share": round(floor / seconds[name], 3),
        "peak_mb": round(memory, 1),
        "error": f"{error:.1e}",
    }


def curve(job: Job, problems: list[str]) -> list[dict]:
    """The rows of a case on maps of other sizes; regions and pooled maps grow with the map."""
    rows = []
    for side in SIDES:
        grown = {
            name: tuple(
                max(1, side * n // whole) for n, whole in zip(getattr(job.case, name), job.case.shape, strict=True)
            )
            for name in ("region", "pooled")
            if hasattr(job.case, name)
        }
        case = replace(job.case, name=f"{job.case.name} at {side}", shape=(side, side), **grown)
        rows += measure(replace(job, case=case), problems)
    return rows


if __name__ == "__main__":
    typer.run(main)
