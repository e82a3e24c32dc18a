"""Every implementation of every operation against the reference: all cases, forward and every gradient.

Memory that PyTorch leaves uninitialised holds NaN here. Without a GPU, Triton kernels run in Triton's interpreter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import zoo.kernels
from zoo.kernels import native, use_backend

OPERATIONS = ("aggregated_attention", "neighborhood_attention", "routing_attention", "window_attention")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOUND = {torch.float32: 60, torch.bfloat16: 12, torch.float16: 12}
"""Largest error in units of the dtype's eps and of the largest number of the result."""


def _module(operation: str) -> ModuleType:
    return import_module(f"zoo.kernels.{operation}.cases")


def _cases(operation: str) -> list:
    module = _module(operation)
    return [*module.MODELS, *module.AWKWARD]


CASES = [(operation, case) for operation in OPERATIONS for case in _cases(operation)]
AWKWARD = [(operation, case) for operation in OPERATIONS for case in _module(operation).AWKWARD]

COMPILED = [
    (operation, case)
    for operation in OPERATIONS
    for case in (
        _module(operation).AWKWARD[0],
        *(c for c in _module(operation).AWKWARD if not getattr(c, "bias", True)),
    )
]
"""An awkward case of each operation, and those without a bias."""

SOON = dict(zip(OPERATIONS, ("wider window", "48 channels", "wider head, small regions", "odd map"), strict=True))
QUICK = [(operation, case) for operation, case in AWKWARD if case.name == SOON[operation]]
"""An awkward case of each operation that the interpreter is soon done with."""
STRIDED = [("native", *c) for c in AWKWARD] + [("triton", *c) for c in (QUICK if DEVICE == "cpu" else AWKWARD)]
REPEATED = [("native", *c) for c in AWKWARD] + [("triton", *c) for c in (() if DEVICE == "cpu" else AWKWARD)]
"""Awkward cases; the interpreter runs programs one after the other, so that two runs of it cannot but be equal."""
LARGE = {
    *("nat_tiny stage 0", "nat_tiny stage 1", "dinat_tiny stage 0", "dinat_base stage 1"),
    *("dinat_large_384_11x11 stage 2", "maxvit_tiny_tf_512 stage 1 grid", "maxvit_tiny_tf_224 stage 0 window"),
    *("maxvit_tiny_tf_224 stage 0 grid", "davit_tiny stage 0", "biformer_tiny stage 0", "transnext_micro stage 0"),
    *("biformer_base stage 0", "transnext_base stage 0", "transnext_micro stage 1", "maxvit_tiny_tf_384 stage 2 grid"),
    *("nat_tiny stage 2", "dinat_large_384 stage 2", "crossformer_pp_small stage 2", "biformer_tiny stage 1"),
}
"""Like later stages and awkward cases but on a larger map, for which the interpreter takes ten seconds and more."""


def _for_the_interpreter() -> list:
    """All but `LARGE`: those of models with one head, so that several are the same."""
    found = {}
    for operation, case in CASES:
        one = case if (operation, case) in AWKWARD else replace(case, heads=1)
        if case.name not in LARGE:
            found.setdefault((operation, replace(one, name="")), (operation, one))
    return list(found.values())


def _name(value: object) -> str:
    return getattr(value, "name", str(value))


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


BACKENDS = ["native", "triton"]
OF_OPERATORS = ["native"] if DEVICE == "cpu" else BACKENDS
"""For what depends on the operator and not on the kernels behind it: without the interpreter."""


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "native" and native.why_not():
        pytest.fail(f"the C++ kernels were not built: {native.why_not()}")
    with use_backend(request.param):
        yield request.param


def _device(backend: str) -> str:
    return DEVICE if backend == "triton" else "cpu"


def _results(operation: str, case, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The output, and the gradient of every floating-point argument for one fixed weighting of the output."""
    leaves = {name: tensor.detach().requires_grad_(tensor.is_floating_point()) for name, tensor in tensors.items()}
    out = getattr(zoo.kernels, operation)(**leaves, **case.settings())
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).sin()
    out.backward(weights.view(out.shape).to(out.dtype))
    return {"out": out.detach()} | {name: leaf.grad for name, leaf in leaves.items() if leaf.requires_grad}


def _assert_close(operation: str, case, dtype: torch.dtype, backend: str, batch: int = 1) -> None:
    rounded = case.tensors(batch, dtype=dtype, device=_device(backend))
    found = _results(operation, case, rounded)
    with use_backend("reference"):
        exact = {name: t.double() if t.is_floating_point() else t for name, t in rounded.items()}
        expected = _results(operation, case, exact)
    for name, result in found.items():
        assert result.dtype == dtype, name
        unit = torch.finfo(dtype).eps * max(1.0, expected[name].abs().max().item())
        error = (result.double() - expected[name]).abs().max().item()
        assert error < BOUND[dtype] * unit, f"{name}: {error / unit:.1f} units"  # a NaN fails, too


@pytest.mark.parametrize(("operation", "case"), CASES, ids=_name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_native_equals_the_reference(operation: str, case, dtype: torch.dtype) -> None:
    few = replace(case, heads=min(case.heads, 4))
    with use_backend("native"):
        _assert_close(operation, few, dtype, "native", batch=2)


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "case"), _for_the_interpreter() if DEVICE == "cpu" else CASES, ids=_name)
def test_triton_equals_the_reference(operation: str, case) -> None:
    with use_backend("triton"):
        _assert_close(operation, case, torch.float32, "triton")


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "case"), AWKWARD[1::2] if DEVICE == "cpu" else CASES, ids=_name)
def test_triton_in_float16(operation: str, case) -> None:
    with use_backend("triton"):
        _assert_close(operation, case, torch.float16, "triton")


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "case"), AWKWARD[::2] if DEVICE == "cpu" else CASES, ids=_name)
def test_triton_in_bfloat16(operation: str, case, bfloat16_products: None) -> None:
    with use_backend("triton"):
        _assert_close(operation, case, torch.bfloat16, "triton")


@pytest.mark.parametrize(("backend", "operation", "case"), STRIDED, ids=_name, indirect=["backend"])
def test_any_strides(operation: str, case, backend: str) -> None:
    tensors = case.tensors(2, dtype=torch.float32, device=_device(backend))
    odd = {name: torch.stack([t, t], -1).select(-1, 1) if t.is_floating_point() else t for name, t in tensors.items()}
    whole, strided = (_results(operation, case, chosen) for chosen in (tensors, odd))
    for name, result in whole.items():
        assert torch.equal(result, strided[name]), name


@pytest.mark.parametrize(("operation", "case"), AWKWARD[:: len(AWKWARD) // 6 or 1], ids=_name)
@pytest.mark.parametrize("batch", [0, 1])
def test_any_batch(operation: str, case, batch: int, backend: str) -> None:
    results = _results(operation, case, case.tensors(batch, device=_device(backend)))
    assert all(result.isfinite().all() for result in results.values())


@pytest.mark.parametrize(("backend", "operation", "case"), REPEATED, ids=_name, indirect=["backend"])
def test_two_runs_are_equal(operation: str, case, backend: str) -> None:
    tensors = case.tensors(2, device=_device(backend))
    first, second = (_results(operation, case, tensors) for _ in range(2))
    for name, result in first.items():
        assert torch.equal(result, second[name]), name


@pytest.mark.parametrize(("operation", "case"), AWKWARD, ids=_name)
def test_threads_change_nothing(operation: str, case) -> None:
    """A sum in C++ belongs to one task, whoever runs it."""
    tensors, threads = case.tensors(3), torch.get_num_threads()
    results = []
    for torch_threads in (1, 2):
        torch.set_num_threads(torch_threads)
        with use_backend("native"):
            results.append(_results(operation, case, tensors))
    torch.set_num_threads(threads)
    for name, result in results[0].items():
        assert torch.equal(result, results[1][name]), name


@pytest.mark.parametrize("backend", OF_OPERATORS, indirect=True)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operator_is_registered_properly(operation: str, backend: str) -> None:
    case = _module(operation).AWKWARD[0]
    seen = []
    operator = import_module(f"zoo.kernels.{operation}.operator")
    tensors = case.tensors(1, device=_device(backend))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operator, "forward", lambda *arguments: seen.append(arguments) or (None,))
        getattr(zoo.kernels, operation)(**tensors, **case.settings())
    arguments = [a.requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in seen[0]]
    torch.library.opcheck(operator.forward, tuple(arguments))


@pytest.mark.parametrize("backend", OF_OPERATORS, indirect=True)
@pytest.mark.parametrize(("operation", "case"), COMPILED, ids=_name)
def test_compiles_as_one_graph(operation: str, case, backend: str) -> None:
    tensors = case.tensors(1, device=_device(backend))
    call = getattr(zoo.kernels, operation)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    leaves = {n: t.requires_grad_(t.is_floating_point()) for n, t in tensors.items()}
    expected, found = (f(**leaves, **case.settings()) for f in (call, compiled))
    torch.testing.assert_close(found, expected)
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    for pair in zip(*(torch.autograd.grad(out.square().sum(), wanted) for out in (found, expected)), strict=True):
        torch.testing.assert_close(*pair)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_vmap_equals_a_loop(operation: str, backend: str) -> None:
    case = _module(operation).AWKWARD[0]
    several = [case.tensors(1, device=_device(backend)) for _ in range(3)]
    shared = {n: t for n, t in several[0].items() if t.shape[:1] != (1,) or "bias" in n}
    stacked = {n: torch.stack([one[n] for one in several]) for n in several[0] if n not in shared}

    def call(mapped: dict[str, torch.Tensor]) -> torch.Tensor:
        return getattr(zoo.kernels, operation)(**mapped, **shared, **case.settings())

    found = torch.func.vmap(call)(stacked)
    for i, one in enumerate(found):
        torch.testing.assert_close(one, call({n: t[i] for n, t in stacked.items()}))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_export_holds_no_operator_of_ours(operation: str) -> None:
    case = _module(operation).AWKWARD[0]
    tensors = case.tensors(2)

    class Call(torch.nn.Module):
        def forward(self, **tensors: torch.Tensor) -> torch.Tensor:
            return getattr(zoo.kernels, operation)(**tensors, **case.settings())

    program = torch.export.export(Call(), (), tensors)
    assert "zoo." not in str(program.graph)
    torch.testing.assert_close(program.module()(**tensors), Call()(**tensors))


def test_use_backend_takes_known_names() -> None:
    with pytest.raises(ValueError, match="expected one of triton, native, reference"), use_backend("cuda"):
        pass


def test_explanations() -> None:
    q = torch.zeros(1, 8, 8, 2, 16)
    explain = zoo.kernels.explain_backend
    assert explain("neighborhood_attention", q) == "neighborhood_attention: native, torch.float32 on the CPU"
    assert explain("neighborhood_attention", q.double()).endswith(
        "reference, the kernels compute in float32, not in torch.float64"
    )
    assert "at most 128 channels, not 160" in explain("neighborhood_attention", q.repeat(1, 1, 1, 1, 10))
    assert explain("neighborhood_attention", q.to("meta")).endswith("reference, there are no kernels for meta")
    assert explain("channel_attention", q, q, q).startswith("channel_attention: native")
    assert "without gradients" in explain("channel_attention", q.clone().requires_grad_(), q, q)
    assert "a multiple of 16" in explain("channel_attention", *[q[..., :8]] * 3)
    assert "takes no bias" in explain("global_attention", q, q, q, q)
    assert explain("deform_conv", q).startswith("deform_conv: reference")
    with pytest.raises(ValueError, match="no operation 'attention'"):
        explain("attention", q)


KEYS = {
    "aggregated_attention": lambda case: case.size**2 + math.prod(case.pooled),
    "neighborhood_attention": lambda case: math.prod(case.size),
    "routing_attention": lambda case: case.topk * math.prod(case.region),
    "window_attention": lambda case: math.prod(case.size),
}
"""How many keys a query attends."""


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_are_counted(operation: str) -> None:
    """Two products of queries and keys forward and five backward, as the README of each operation has it.

    The reference is no measure: whether PyTorch counts its own attention depends on version and device.
    """
    case = _module(operation).MODELS[0]
    leaves = {n: t.requires_grad_(t.is_floating_point()) for n, t in case.tensors(1).items()}
    with use_backend("native"), FlopCounterMode(display=False) as counter:
        getattr(zoo.kernels, operation)(**leaves, **case.settings()).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    forward, backward = (getattr(torch.ops.zoo, name) for name in (operation, f"{operation}_backward"))
    assert counts[forward] == 4 * math.prod(case.shape) * case.heads * case.head_dim * KEYS[operation](case)
    assert 2 * counts[backward] == 5 * counts[forward]
