"""What there is to do: the cases of each operation, by dtype and batch, the most telling first."""

from __future__ import annotations

from importlib import import_module

from gpu.run import Run

SMALL = 4
"""Images of the cases that are tried in the less usual dtypes."""
AWKWARD = 3
"""Images of awkward cases."""


def cases_of(operation: str) -> list:
    """All cases of an operation."""
    module = import_module(f"zoo.kernels.{operation}.cases")
    return [*module.MODELS, *module.AWKWARD]


def model_cases(run: Run, operation: str) -> list:
    """The cases of real variants that are asked for, those of a first stage first: they weigh most."""
    module = import_module(f"zoo.kernels.{operation}.cases")
    return sorted((c for c in module.MODELS if run.case in c.name), key=lambda case: "stage 0" not in case.name)


def correctness_plan(run: Run, operation: str) -> list[tuple]:
    """(case, dtype, batch): real cases as they are trained, then in other dtypes, then awkward ones."""
    module = import_module(f"zoo.kernels.{operation}.cases")
    real = model_cases(run, operation)
    plan = [(case, "bfloat16", run.batch) for case in real]
    plan += [(case, dtype, run.batch) for dtype in ("float16", "float32") for case in real[:1]]
    plan += [(case, dtype, min(run.batch, SMALL)) for dtype in ("float16", "float32") for case in real[1:]]
    if run.device == "cuda":
        plan += [(case, "tf32", min(run.batch, SMALL)) for case in real[:1]]
    return plan + [(case, "bfloat16", min(run.batch, AWKWARD)) for case in module.AWKWARD if run.case in case.name]


def compile_plan(run: Run) -> list[tuple[str, str, str, int]]:
    """(operation, case, dtype, batch) of all that is launched; whatever the GPU, all dtypes and operations in turn."""
    plans = [
        [(operation, case.name, dtype, batch) for case, dtype, batch in correctness_plan(run, operation)]
        for operation in run.operations
    ]
    longest = max(map(len, plans), default=0)
    return [plan[i] for i in range(longest) for plan in plans if i < len(plan)]
