"""Calls the C++ kernels in every way that their documentation allows and compares them with the specification.

    python scripts/fuzz_kernels.py --calls 100000 --jobs 2
    python scripts/fuzz_kernels.py --calls 1 --seed 4711               # a failure once more, alone

Each call has a seed of its own. Outputs and every gradient are compared with the reference in float64, also in where
they are NaN or infinite; some calls run twice, on other numbers of threads, and must give the same bits; some are wrong
and must be refused with a ValueError. Exit status 1 if anything fails.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from random import Random
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # more threads than cores, of several processes

import torch
import typer
from fuzz_draw import DRAWN, Call, draw
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel

import zoo.kernels
from zoo.kernels import explain_backend, use_backend

OPERATIONS = tuple(DRAWN)
BOUND = 60
"""Largest error, in units of the dtype's eps and of the largest number that the result is summed from."""
SHARE = 250
"""Calls that a process takes at once."""


@dataclass
class Found:
    """What calls of one operation showed."""

    calls: int = 0
    worst: float = 0
    backends: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        self.calls += other.calls
        self.worst = max(self.worst, other.worst)
        self.backends += other.backends
        self.failures += other.failures


def main(
    calls: Annotated[int, typer.Option(min=1)] = 10000,
    seed: Annotated[int, typer.Option(min=0, help="Of the first call; the next one's is larger by one.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    show: Annotated[int, typer.Option(min=1, help="Failures that are printed.")] = 10,
) -> None:
    """Print calls, worst errors and backends of each operation, and the first failures."""
    total = {operation: Found() for operation in OPERATIONS}
    shares = [range(begin, min(begin + SHARE, seed + calls)) for begin in range(seed, seed + calls, SHARE)]
    if len(shares) == 1:
        results = map(run, shares)
        gather(total, results, show)
    else:
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            gather(total, pool.map(run, shares), show)
    table = Table("operation", "calls", "worst error", "backends", "failures")
    for operation, found in total.items():
        ways = ", ".join(f"{name} {count}" for name, count in sorted(found.backends.items()))
        table.add_row(operation, str(found.calls), f"{found.worst:.1f} units", ways, str(len(found.failures)))
    Console(width=120).print(table)
    raise typer.Exit(1 if any(found.failures for found in total.values()) else 0)


def gather(total: dict[str, Found], results: Iterable[dict[str, Found]], show: int) -> None:
    """Add results to a total, and print the first failures as they come."""
    shown = 0
    for result in results:
        for operation, found in result.items():
            for failure in found.failures[: max(0, show - shown)]:
                print(failure, flush=True)
                shown += 1
            total[operation].add(found)


def run(seeds: range) -> dict[str, Found]:
    """What the calls of some seeds show."""
    total = {operation: Found() for operation in OPERATIONS}
    for seed in seeds:
        call = draw(OPERATIONS[seed % len(OPERATIONS)], seed)
        found = total[call.operation]
        found.calls += 1
        try:
            complaint = refused(call, found) if call.wrong else compared(call, Random(seed), found)
        except Exception as error:
            complaint = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if complaint:
            found.failures.append(f"--calls 1 --seed {seed}: {complaint}\n    {call}")
    return total


def refused(call: Call, found: Found) -> str:
    """What is wrong with the refusal of a wrong call; empty if nothing is."""
    found.backends["refused"] += 1
    try:
        results(call, call.tensors, [])
    except ValueError as error:
        return "" if len(str(error).split()) > 3 else f"refused without a sentence: {error}"
    return "not refused"


def compared(call: Call, random: Random, found: Found) -> str:
    """What is wrong with a call; empty if nothing is."""
    backend = explain_backend(call.operation, **call.tensors, **call.settings).split()[1].strip(",")
    found.backends[backend] += 1
    torch.set_num_threads(random.randint(1, 4))
    with sdpa_kernel(SDPBackend.MATH):  # where the reference runs: others of PyTorch's lose NaN
        got = results(call, call.tensors, call.wanted)
    if backend == "native" and random.random() < 0.2:
        torch.set_num_threads(random.randint(1, 4))
        again = results(call, call.tensors, call.wanted)
        for name, result in got.items():
            if not torch.equal(result.nan_to_num(nan=12345.0), again[name].nan_to_num(nan=12345.0)):
                return f"{name} differs from run to run"
    torch.set_num_threads(1)
    exact = {n: t.double() if t.is_floating_point() else t for n, t in call.tensors.items()}
    with use_backend("reference"), sdpa_kernel(SDPBackend.MATH):
        expected = results(call, exact, call.wanted)
    for name, result in got.items():
        dtype = call.tensors.get(name, call.tensors["q"]).dtype
        if result.dtype != dtype or result.shape != expected[name].shape:
            return f"{name} is {result.dtype} {tuple(result.shape)}"
        error = distance(call, exact, name, result, expected[name])
        if not error < BOUND:
            return f"{name} is off by {error:.3g} units"
        found.worst = max(found.worst, error)
    return ""


def results(call: Call, tensors: dict[str, torch.Tensor], wanted: list[str]) -> dict[str, torch.Tensor]:
    """The output and the wanted gradients."""
    leaves = {n: t.detach().requires_grad_(n in wanted) for n, t in tensors.items()}
    out = getattr(zoo.kernels, call.operation)(**leaves, **call.settings)
    if not wanted:
        return {"out": out}
    if not out.requires_grad and not out.numel():  # so does PyTorch's function with a mask, of no image
        return {"out": out, **{n: torch.zeros_like(leaves[n]) for n in wanted}}
    gradients = torch.autograd.grad(out, [leaves[n] for n in wanted], call.grad.to(out.dtype), materialize_grads=True)
    return {"out": out.detach(), **dict(zip(wanted, gradients, strict=True))}


def distance(call: Call, exact: dict, name: str, result: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error in units; infinite where one is finite and the other is not."""
    rounded, finite = expected.to(result.dtype), result.isfinite()
    same = finite == rounded.isfinite()
    if call.beyond:  # what the specification multiplies by zero beyond the map, the kernels leave out
        same |= finite & rounded.isnan()
    if not same.all():
        return math.inf
    both = finite & rounded.isfinite()
    if not both.any():
        return 0.0
    expected, error = expected[both], (result.double()[both] - expected[both]).abs().max().item()
    unit = max(1.0, expected.abs().max().item(), magnitude(call, exact, name))
    logits = 1 + largest(exact["q"]) * max(largest(exact["k"]), largest(exact.get("pooled_k", exact["k"])))
    logits *= abs(call.settings.get("scale", exact["q"].shape[-1] ** -0.5))
    computed = torch.promote_types(result.dtype, torch.float32)
    eps = max(torch.finfo(result.dtype).eps, torch.finfo(computed).eps * logits / 32)
    return error / (eps * unit)


def largest(x: torch.Tensor) -> float:
    """The largest length of a row of finite channels."""
    return x.nan_to_num(0, 0, 0).norm(dim=-1).max().item() if x.numel() else 0.0


def magnitude(call: Call, exact: dict, name: str) -> float:
    """How large the numbers are that a result is the sum of."""
    values = max(1.0, *(largest(t) for n, t in exact.items() if n.endswith("v")))
    if "extra" in exact:
        values *= max(1.0, largest(exact["extra"]))
    if name == "out":
        return values
    grad = largest(call.grad.double())
    if name in ("v", "pooled_v"):
        return grad
    scale = abs(call.settings.get("scale", exact["q"].shape[-1] ** -0.5))
    if name.endswith("bias"):  # a sum over all images and positions
        return grad * values * max(1.0, math.sqrt(call.grad[..., 0].numel() / 16))
    others = {"q": ("k", "pooled_k"), "k": ("q",), "pooled_k": ("q",)}.get(name, ())
    return grad * values * scale * max([1.0, *(largest(exact[n]) for n in others if n in exact)])


if __name__ == "__main__":
    typer.run(main)
