"""Phase `correctness`: output and every gradient against the specification in float64.

Beside the error of our kernels stands that of the specification in the same precision, which they may exceed
threefold. The truth is computed a few images at a time, for which there is memory. Uninitialised memory holds NaN, two
runs must be equal bit by bit, and no run may wait for the GPU: it could not be captured in a CUDA graph.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from bench.kernel_runs import Job, Tensors, is_common, leaves_of, of_images, results
from bench.measure import why_it_waits
from gpu.plan import correctness_plan
from gpu.run import Run

CHUNK = 8
"""Images of which the truth is computed at once: 10 GB for the largest windows."""
LIMIT = {"float32": 3e-6, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.5e-2}
"""Error of a whole result, relative to its norm, that is right in any case."""
ROW = 10
"""So much larger may the error of one position be, relative to the norm of a usual one."""
SECONDS = 3
"""Of a case, with room to spare."""


def check_operation(run: Run, operation: str) -> None:
    """A unit of work for each case and dtype."""
    for case, dtype, batch in correctness_plan(run, operation):
        what = {"phase": "correctness", "operation": operation, "case": case.name, "provider": f"{dtype} x {batch}"}
        run.unit(SECONDS, partial(check, run, operation, case, dtype, batch), **what)
        if run.device == "cuda":
            torch.cuda.empty_cache()


def check(run: Run, operation: str, case, dtype: str, batch: int) -> str:
    """Compare one case and note every error; what is wrong with it, or an empty string."""
    with _products_in_tf32(dtype == "tf32"):
        kind = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
        torch.manual_seed(zlib.crc32(f"{operation} {case.name} {dtype}".encode()))
        job = Job(operation, case, "training", batch, kind, run.device)
        tensors = case.tensors(batch, dtype=kind, device=run.device)
        upstream = torch.randn_like(tensors["q"])
        step = stepper(job.by(run.backend), tensors, upstream)
        first, second = _poisoned(step), _poisoned(step)
        problems = [] if all(torch.equal(first[n], second[n]) for n in first) else ["two runs differ"]
        waits = why_it_waits(step) if run.device == "cuda" else ""
        problems += [f"waits for the GPU: {waits[:100]}"] if waits else []
        truth = by_chunks(job.by("reference"), tensors, upstream, torch.float64)
        theirs = by_chunks(job.by("reference"), tensors, upstream, kind)
    for name, expected in truth.items():
        ours, usual = (errors(found[name], expected) for found in (first, theirs))
        bounds = [max(limit, 3 * other) for limit, other in zip((LIMIT[dtype], ROW * LIMIT[dtype]), usual, strict=True)]
        right = all(error <= bound for error, bound in zip(ours, bounds, strict=True))  # a NaN is not
        run.write(
            "correctness",
            operation=operation,
            case=case.name,
            dtype=dtype,
            batch=batch,
            result=name,
            error=f"{ours[0]:.1e}",
            row_error=f"{ours[1]:.1e}",
            reference_error=f"{usual[0]:.1e}",
            reference_row_error=f"{usual[1]:.1e}",
            right=right,
        )
        if not right:
            problems.append(f"{name} is off by {ours[0]:.1e}, a row by {ours[1]:.1e}; the reference by {usual[0]:.1e}")
    return "; ".join(problems)


def stepper(call: Callable, tensors: Tensors, upstream: torch.Tensor) -> Callable[[], Tensors]:
    """Forward and backward pass as a function without arguments."""
    leaves = leaves_of(tensors, upstream)
    return lambda: results(call, leaves, upstream)


def by_chunks(call: Callable, tensors: Tensors, upstream: torch.Tensor, kind: torch.dtype) -> Tensors:
    """Results in some precision, a few images at a time; gradients of what is common to all are summed in float64."""
    parts = []
    for start in range(0, len(upstream), CHUNK):
        images = slice(start, start + CHUNK)
        some = {n: t.to(kind) if t.is_floating_point() else t for n, t in of_images(tensors, images).items()}
        parts.append(stepper(call, some, upstream[images].to(kind))())
    return {
        name: sum(part[name].double() for part in parts) if is_common(name) else torch.cat([p[name] for p in parts])
        for name in parts[0]
    }


def errors(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """The error relative to the norm of all, and that of the worst row relative to the norm of a usual row."""
    found, expected = (t.double().reshape(-1, t.shape[-1]) for t in (found, expected))
    difference, norm = found - expected, expected.norm().clamp(min=1e-30)
    worst = difference.norm(dim=1).max() / norm * len(expected) ** 0.5
    return (difference.norm() / norm).item(), worst.item()


def _poisoned(step: Callable[[], Tensors]) -> Tensors:
    """A step in which new memory holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return step()
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def _products_in_tf32(allowed: bool) -> Iterator[None]:
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
