"""The specification of neighborhood attention: against masks by coordinates, by gradcheck, at every case."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.kernels import neighborhood_attention, use_backend
from zoo.kernels.exporting import export_safe
from zoo.kernels.neighborhood_attention.cases import AWKWARD, MODELS, Case

BOUND = {torch.float32: 40, torch.bfloat16: 10, torch.float16: 10}
"""Largest error in units of the dtype's eps."""
SMALL = [case for case in (*MODELS, *AWKWARD) if case.shape[0] * case.shape[1] <= 200]


def inputs(case: Case, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    qkv = torch.randn(batch, *case.shape, 3, case.heads, case.head_dim, dtype=dtype).unbind(3)
    table = torch.randn(case.heads, *(2 * n - 1 for n in case.size), dtype=dtype)
    return [*qkv, table] if case.bias else [*qkv, None]


def nearest(length: int, size: int, dilation: int, position: int) -> list[int]:
    """The `size` positions of one axis that are nearest to `position` among those equal to it modulo `dilation`."""
    group = range(position % dilation, length, dilation)
    return sorted(sorted(group, key=lambda other: abs(other - position))[:size])


def seen_on(length: int, size: int, dilation: int) -> torch.Tensor:
    """Which positions of one axis each position sees, (length, length)."""
    seen = torch.zeros(length, length, dtype=torch.bool)
    for position in range(length):
        seen[position, nearest(length, size, dilation, position)] = True
    return seen


def brute_force(q, k, v, bias, case: Case, scale: float | None = None) -> torch.Tensor:
    """Every position against every other, those outside the window masked."""
    y, x = torch.cartesian_prod(*(torch.arange(n) for n in case.shape)).T
    rows, columns = (seen_on(*axis) for axis in zip(case.shape, case.size, case.dilation, strict=True))
    seen = rows[y[:, None], y] & columns[x[:, None], x]
    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
    logits = q @ k.mT * (case.head_dim**-0.5 if scale is None else scale)
    if bias is not None:
        away = [(t - t[:, None]) // d + n - 1 for t, n, d in zip((y, x), case.size, case.dilation, strict=True)]
        down, right = (t.where(seen, 0) for t in away)
        logits = logits + bias[:, down, right]
    weights = logits.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2).unflatten(1, case.shape)


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_equals_brute_force(case: Case) -> None:
    q, k, v, bias = inputs(case)
    out = neighborhood_attention(q, k, v, case.size, case.dilation, bias)
    torch.testing.assert_close(out, brute_force(q, k, v, bias, case))


def test_scale_is_an_argument() -> None:
    q, k, v, bias = inputs(AWKWARD[0])
    out = neighborhood_attention(q, k, v, AWKWARD[0].size, bias=bias, scale=0.7)
    torch.testing.assert_close(out, brute_force(q, k, v, bias, AWKWARD[0], scale=0.7))


axis = st.tuples(st.sampled_from([1, 3, 5]), st.integers(1, 3), st.integers(0, 4))


@settings(max_examples=30, deadline=None)
@given(axes=st.tuples(axis, axis))
def test_every_query_sees_its_nearest_keys_once(axes: tuple) -> None:
    """Equal logits and one channel per position: the output is the map of the keys that were seen."""
    size, dilation, _ = zip(*axes, strict=True)
    height, width = (n * d + more for n, d, more in axes)
    zeros = torch.zeros(1, height, width, 1, height * width)
    v = torch.eye(height * width).view_as(zeros)
    seen = neighborhood_attention(zeros, zeros, v, size, dilation)[0, :, :, 0].unflatten(-1, (height, width))
    assert ((seen > 0).sum((-2, -1)) == size[0] * size[1]).all()
    rows, columns = seen_on(height, size[0], dilation[0]), seen_on(width, size[1], dilation[1])
    assert torch.equal(seen > 0, rows[:, None, :, None] & columns[None, :, None, :])


@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda c: c.name)
def test_the_exported_form_equals_the_reference(case: Case) -> None:
    tensors = case.tensors(2, dtype=torch.float64)
    expected = neighborhood_attention(**tensors, **case.settings())
    with export_safe():
        torch.testing.assert_close(neighborhood_attention(**tensors, **case.settings()), expected)


@settings(max_examples=30, deadline=None)
@given(axes=st.tuples(axis, axis))
def test_the_exported_form_on_maps_of_any_size(axes: tuple) -> None:
    size, dilation, more = zip(*axes, strict=True)
    shape = [n * d + 2 * m for n, d, m in zip(size, dilation, more, strict=True)]
    q, k, v = torch.randn(1, *shape, 3, 2, 4, dtype=torch.float64).unbind(3)
    expected = neighborhood_attention(q, k, v, size, dilation)
    with export_safe():
        torch.testing.assert_close(neighborhood_attention(q, k, v, size, dilation), expected)


@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_gradients(case: Case) -> None:
    tensors = [t.requires_grad_() for t in inputs(case, batch=1) if t is not None]

    def call(q, k, v, bias=None):
        return neighborhood_attention(q, k, v, case.size, case.dilation, bias)

    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("one_thread")
def test_other_dtypes_follow_the_reference(case: Case, dtype: torch.dtype) -> None:
    rounded = inputs(case, batch=1, dtype=dtype)
    q, k, v, bias = rounded
    out = neighborhood_attention(q, k, v, case.size, case.dilation, bias)
    assert out.dtype == dtype
    q, k, v, bias = (None if t is None else t.double() for t in rounded)
    expected = neighborhood_attention(q, k, v, case.size, case.dilation, bias)
    assert (out.double() - expected).abs().max() < BOUND[dtype] * torch.finfo(dtype).eps


def test_a_wider_bias_keeps_the_dtype() -> None:
    q, k, v, bias = inputs(AWKWARD[0], dtype=torch.bfloat16)
    out = neighborhood_attention(q, k, v, 3, bias=bias.float())
    assert out.dtype == torch.bfloat16
    expected = neighborhood_attention(q.double(), k.double(), v.double(), 3, bias=bias.double())
    assert (out.double() - expected).abs().max() < BOUND[out.dtype] * torch.finfo(out.dtype).eps


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch(batch: int) -> None:
    q, k, v, bias = inputs(AWKWARD[0], batch)
    out = neighborhood_attention(q, k, v, 3, 1, bias)
    assert out.shape == q.shape
    for image in range(batch):
        alone = (t[image : image + 1] for t in (q, k, v))
        torch.testing.assert_close(out[image : image + 1], neighborhood_attention(*alone, 3, 1, bias))


@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_any_strides(case: Case) -> None:
    *packed, bias = inputs(case)

    def call(tensors):
        return neighborhood_attention(*tensors, case.size, case.dilation, bias)

    expected = call([t.contiguous() for t in packed])
    torch.testing.assert_close(call(packed), expected)
    torch.testing.assert_close(call([t.transpose(0, 4).contiguous().transpose(0, 4) for t in packed]), expected)


@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_two_runs_are_equal(case: Case) -> None:
    q, k, v, bias = inputs(case, dtype=torch.float32)
    runs = [neighborhood_attention(q, k, v, case.size, case.dilation, bias) for _ in range(2)]
    assert torch.equal(*runs)


def test_compiles_as_one_graph() -> None:
    case = AWKWARD[2]
    q, k, v, bias = inputs(case)
    compiled = torch.compile(neighborhood_attention, fullgraph=True, backend="aot_eager")
    arguments = (q, k, v, case.size, case.dilation, bias)
    torch.testing.assert_close(compiled(*arguments), neighborhood_attention(*arguments))


PLANS = {
    "pairs in chunks": (Case("", (5, 9), 1, 8, (3, 3)), 2, 0.0, torch.float16),
    "table, several images": (Case("", (11, 17), 1, 8, (3, 3), (3, 5)), 3, 99.0, torch.float16),
    "table in chunks, several images": (Case("", (9, 13), 1, 8, (3, 3)), 2, 99.0, torch.float32),
    "table, no bias": (Case("", (8, 9), 1, 8, (5, 5), bias=False), 2, 99.0, torch.float16),
    "tiles that are alike": (Case("", (5, 45), 1, 8, (3, 3)), 1, 99.0, torch.float16),
}
"""A case, its batch, the most memory of a table of pairs, a dtype: for each way in which kernels can be launched."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_every_plan_of_a_launch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with large batches and maps: one program at a time, which takes all images."""
    kernels = "zoo.kernels.neighborhood_attention.triton"
    plan = pytest.importorskip(f"{kernels}_plan")
    monkeypatch.setattr(plan, "multiprocessors", lambda device: 1)
    for module in (kernels, f"{kernels}_queries", f"{kernels}_keys"):
        monkeypatch.setattr(import_module(module), "PER_SM", 1)
    case, batch, largest, dtype = PLANS[name]
    monkeypatch.setattr(plan, "LARGEST", largest)
    plan._plan.cache_clear()
    tensors = case.tensors(batch, dtype=dtype, device="cuda" if torch.cuda.is_available() else "cpu")
    with use_backend("triton"):
        found = gradients(case, tensors)
    plan._plan.cache_clear()
    with use_backend("reference"):
        expected = gradients(case, {name: t.double() for name, t in tensors.items()})
    for result, exact in zip(found, expected, strict=True):
        unit = torch.finfo(dtype).eps * max(1.0, exact.abs().max().item())
        assert (result.double() - exact).abs().max() < BOUND[dtype] * unit


def gradients(case: Case, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The output, and the gradients of all arguments for a fixed weighting of the output."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    out = neighborhood_attention(**leaves, **case.settings())
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).sin().view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), weights.to(out.dtype))]


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_a_scale_that_is_not_positive(scale: float) -> None:
    case = AWKWARD[4]
    tensors = case.tensors(1, device="cuda" if torch.cuda.is_available() else "cpu")
    results = {}
    for backend in ("triton", "reference"):
        leaves = [t.detach().requires_grad_() for t in tensors.values()]
        with use_backend(backend):
            out = neighborhood_attention(*leaves, case.size, case.dilation, scale=scale)
            results[backend] = [out, *torch.autograd.grad(out.square().sum(), leaves)]
    torch.testing.assert_close(results["triton"], results["reference"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.zeros(2, 3, 4)}, "expected 5: "),
        ({"k": torch.zeros(1, 7, 8, 1, 9)}, "must agree"),
        ({"k": torch.zeros(1, 8, 8, 1, 8)}, "must agree"),
        ({"v": torch.zeros(1, 7, 8, 1, 8, dtype=torch.float64)}, "must agree"),
        ({"v": torch.zeros(1, 7, 8, 1, 8, device="meta")}, "must agree"),
        ({"bias": torch.zeros(1, 3, 3)}, r"bias is \(1, 3, 3\), expected \(1, 5, 5\)"),
        ({"bias": torch.zeros(2, 5, 5)}, r"expected \(1, 5, 5\)"),
        ({"size": 2}, "expected odd numbers"),
        ({"size": (3, 4)}, "expected odd numbers"),
        ({"size": 0}, "size is 0, expected one or two positive integers"),
        ({"dilation": 0}, "dilation is 0, expected one or two positive integers"),
        ({"dilation": (1, 2, 3)}, "dilation is .* expected one or two positive integers"),
        ({"size": 9}, r"the map is \(7, 8\), expected at least size \* dilation = \(9, 9\)"),
        ({"dilation": (3, 1)}, r"the map is \(7, 8\), expected at least size \* dilation = \(9, 3\)"),
        ({"dilation": (1, 3)}, r"the map is \(7, 8\), expected at least size \* dilation = \(3, 9\)"),
    ],
)
def test_wrong_arguments(change: dict, words: str) -> None:
    tensor = torch.zeros(1, 7, 8, 1, 8)
    arguments = {"q": tensor, "k": tensor, "v": tensor, "size": 3} | change
    with pytest.raises(ValueError, match=words):
        neighborhood_attention(**arguments)
