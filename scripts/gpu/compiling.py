"""Phase `compile`: every variant of every kernel, by many processes at once, into Triton's cache on disk.

A process after another would take minutes of a GPU's time. No process here touches the GPU: Triton is told what it is.
"""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor, TimeoutError, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch
from triton.backends.compiler import GPUTarget

from bench.aot_compile import Target, at_the_door, precision_of, prepared
from gpu.plan import cases_of, compile_plan
from gpu.run import Run

Task = tuple[str, str, str, int]
"""Operation, name of a case, dtype, batch."""
Result = tuple[str, str, str, float, list[str]]
"""Operation, name of a case, dtype, seconds, problems."""
ATTEMPTS = 3
"""A crash of a compiler ends all processes; so often the rest is tried again."""


def compile_all(run: Run, _: str) -> None:
    """Compile what the other phases will launch; a row for each case and dtype."""
    start, target, plan = time.time(), target_of(run.device), compile_plan(run)
    left = list(plan)
    for _attempt in range(ATTEMPTS):
        left = _compile_some(run, left, target)
        if not left or run.left() <= 0:
            break
    crashed = bool(left) and run.left() > 0
    names = "; ".join(" ".join(map(str, task)) for task in left)
    note = f"{'the compiler crashed at some of' if crashed else 'they compile when they run'}: {names}" if left else ""
    row = {"phase": "compile", "operation": "all", "case": f"{target.backend} {target.arch}", "provider": ""}
    status = "failed" if crashed else "skipped" if left else "done"
    run.write("unit", **row, status=status, seconds=round(time.time() - start, 1), note=note)


def _compile_some(run: Run, tasks: list[Task], target: GPUTarget) -> list[Task]:
    """Compile in processes until the time is up or one of them crashes; what is left, the suspects last."""
    pool = ProcessPoolExecutor(run.jobs, mp_context=get_context("spawn"))
    futures = {pool.submit(_compile, *task, target): task for task in tasks}
    left = list(tasks)
    try:
        for future in as_completed(futures, timeout=max(run.left(), 0.1)):
            _note(run, *future.result())
            left.remove(futures[future])
    except TimeoutError:
        for process in pool._processes.values():  # they would finish what they are at, and the time is up
            os.kill(process.pid, signal.SIGKILL)
    except BrokenProcessPool:
        left = left[run.jobs :] + left[: run.jobs]  # tasks are begun in their order
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return left


def _note(run: Run, operation: str, case: str, dtype: str, seconds: float, problems: list[str]) -> None:
    row = {"phase": "compile", "operation": operation, "case": case, "provider": dtype}
    status = "wrong" if problems else "done"
    run.write("unit", **row, status=status, seconds=round(seconds, 2), note="; ".join(problems))


def target_of(device: str) -> GPUTarget:
    """The GPU at hand; without one, an H100."""
    if device == "cpu":
        return GPUTarget("cuda", 90, 32)
    if torch.version.hip:
        return GPUTarget("hip", torch.cuda.get_device_properties(0).gcnArchName.partition(":")[0], 64)
    major, minor = torch.cuda.get_device_capability()
    return GPUTarget("cuda", 10 * major + minor, 32)


def _compile(operation: str, name: str, dtype: str, batch: int, target: GPUTarget) -> Result:
    """All kernels that a forward and a backward pass of a case would launch."""
    torch.set_num_threads(1)
    start, problems, most = time.time(), [], _most_shared(target)
    _pretend(target)

    def launch(kernel, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
        if not all(grid):
            return
        try:
            built = kernel.warmup(*arguments, grid=grid, **options)
            if (shared := built.metadata.shared) > most:
                problems.append(f"{kernel.__name__}: takes {shared} bytes of shared memory, of {most}")
            _build_launcher(built, target)
        except Exception as error:  # whatever a compiler says is the finding
            problems.append(f"{kernel.__name__}: {type(error).__name__}: {str(error)[:200]}")

    try:
        case = next(case for case in cases_of(operation) if case.name == name)
        step = prepared(operation, case, dtype, batch)
        with at_the_door(launch, target.arch if target.backend == "cuda" else 90, precision_of(dtype)):
            step()
    except Exception as error:  # the other cases are still of interest
        problems.append(f"{type(error).__name__}: {str(error)[:200]}")
    return operation, name, dtype, time.time() - start, problems


def _most_shared(target: GPUTarget) -> int:
    """Bytes that a program may take."""
    return Target(target.arch if target.backend == "hip" else f"sm_{target.arch}").shared


def _pretend(target: GPUTarget) -> None:
    """Let Triton's runtime believe in a GPU."""
    from triton.runtime import driver

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return target

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    driver.set_active(Driver())


def _build_launcher(built, target: GPUTarget) -> None:
    """The small C function that launches a kernel, half a second of a C compiler, where this Triton makes one.

    It is cached like the kernel. It needs CUDA's driver library; what fails here is built at the first launch.
    """
    if target.backend != "cuda":
        return
    try:
        from triton.backends.nvidia.driver import CudaLauncher

        CudaLauncher(built.src, built.metadata)
    except Exception:
        return
