"""Phases `kernels`, `tune` and `peers`: how long an operation takes, by ours and others; see `bench/kernel_runs.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType

import torch

from bench.kernel_runs import MODES, OURS, Job, leaves_of, measure, results
from bench.measure import kernel_times
from gpu.plan import model_cases
from gpu.run import Run

FACTORS = (0.5, 1, 2, 4)
"""Programs of a multiprocessor that `tune` tries, in units of what is set."""
TUNED = 3
"""So many cases of an operation are tuned."""
KERNELS = 10
"""So many kernels of a step are listed, the longest first."""
SECONDS = {"ours": 4, "reference": 6, "peers": 30, "reference compiled": 30}
"""Of one case in one mode, by provider; ours is measured again beside the others."""


def time_kernels(run: Run, operation: str) -> None:
    """Ours alone, with the kernels of each step."""
    for mode in MODES:
        for case in model_cases(run, operation):
            job = _job(run, operation, case, mode)
            run.unit(SECONDS["ours"], partial(_measure, run, job, _is_ours), **_what("kernels", job, run.backend))
            if run.device == "cuda":
                run.unit(SECONDS["ours"], partial(_profile, run, job), **_what("profile", job, run.backend))


def time_peers(run: Run, operation: str) -> None:
    """Ours once more, and all others in the same process."""
    for case in model_cases(run, operation):
        for mode in MODES:
            job = _job(run, operation, case, mode)
            for name in ("reference", "peers", "reference compiled"):
                work = partial(_measure, run, job, partial(_is_ours_or, name))
                run.unit(SECONDS[name], work, **_what("peers", job, name))


def tune(run: Run, operation: str) -> None:
    """Ours with fewer and with more programs, which compiles nothing; only where their number is ours to set."""
    if not _tunable(operation):
        return
    for case in model_cases(run, operation)[:TUNED]:
        for mode in MODES:
            for factor in FACTORS:
                job = _job(run, operation, case, mode)
                name = f"{run.backend}, programs x {factor:g}"
                work = partial(_measure_scaled, run, job, factor, name)
                run.unit(SECONDS["ours"], work, **_what("tune", job, name))


def _job(run: Run, operation: str, case, mode: str) -> Job:
    return Job(operation, case, mode, run.batch, torch.bfloat16, run.device, 25 if run.device == "cuda" else 3)


def _what(phase: str, job: Job, provider: str) -> dict[str, str]:
    return {"phase": phase, "operation": job.operation, "case": f"{job.case.name}, {job.mode}", "provider": provider}


def _is_ours(provider: str) -> bool:
    return provider in OURS


def _is_ours_or(name: str, provider: str) -> bool:
    return provider in (*OURS, name)


def _measure(run: Run, job: Job, only: Callable[[str], bool], rename: str = "") -> str:
    problems, found = [], []
    for row in measure(job, problems, only):
        run.write("kernels", **row | ({"provider": rename} if rename else {}))
        found.append(row["provider"])
    ours = [problem for problem in problems if "OURS" in problem]
    if run.backend not in found and not ours:
        ours = [f"{run.backend} was not timed: the library would take {', '.join(found) or 'something else'}"]
    for problem in problems:
        if problem not in ours:
            run.write("left out", note=problem)
    return "; ".join(ours)


def _measure_scaled(run: Run, job: Job, factor: float, name: str) -> str:
    with _programs(job.operation, factor):
        return _measure(run, job, _is_ours, name)


@contextmanager
def _programs(operation: str, factor: float) -> Iterator[None]:
    """Within this context the kernels of an operation share their work among so many times as many programs."""
    before = [(module, module.PER_SM) for module in _tunable(operation)]
    for module, number in before:
        module.PER_SM = max(1, round(number * factor))
    try:
        yield
    finally:
        for module, number in before:
            module.PER_SM = number


def _tunable(operation: str) -> list[ModuleType]:
    """The modules of an operation that say how many programs of theirs a multiprocessor gets."""
    prefix = f"zoo.kernels.{operation}."
    import_module(f"{prefix}triton")
    return [module for name, module in sys.modules.items() if name.startswith(prefix) and hasattr(module, "PER_SM")]


def _profile(run: Run, job: Job) -> None:
    tensors = job.case.tensors(job.batch, dtype=job.dtype, device=job.device)
    upstream = torch.randn_like(tensors["q"]) if job.mode == "training" else None
    step = partial(results, job.by(run.backend), leaves_of(tensors, upstream), upstream)
    for name, seconds in list(kernel_times(step).items())[:KERNELS]:
        where = {"operation": job.operation, "case": job.case.name, "mode": job.mode}
        run.write("profile", **where, kernel=name[:160], us=round(1e6 * seconds, 1))
