"""The specification of global attention: against a softmax written out, by gradcheck, at every case."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.kernels import global_attention
from zoo.kernels.global_attention import reference
from zoo.kernels.global_attention.cases import AWKWARD, MODELS, Case

BOUND = {torch.float32: 40, torch.bfloat16: 10, torch.float16: 10}
"""Largest error in units of the dtype's eps."""


def inputs(case: Case, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    q = torch.randn(batch, *case.shape, case.heads, case.head_dim, dtype=dtype)
    k, v = torch.randn(batch, *case.keys, 2, case.heads, case.head_dim, dtype=dtype).unbind(3)
    pairs = (case.shape[0] * case.shape[1], case.keys[0] * case.keys[1])
    return [q, k, v, torch.randn(case.heads, *pairs, dtype=dtype) if case.bias else None]


def weights_of(query, keys, bias, scale: float) -> torch.Tensor:
    """The softmax of one query (B, heads, head_dim) over keys (B, n, heads, head_dim), written out: (B, n, heads)."""
    logits = scale * torch.einsum("bhd,bnhd->bnh", query, keys)
    if bias is not None:
        logits = logits + bias.T
    powers = (logits - logits.amax(1, keepdim=True)).exp()
    return powers / powers.sum(1, keepdim=True)


def brute_force(q, k, v, bias, scale: float | None = None) -> torch.Tensor:
    """Each query alone, against every key."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    keys, values, out = k.flatten(1, 2), v.flatten(1, 2), torch.empty_like(q)
    for y in range(q.shape[1]):
        for x in range(q.shape[2]):
            own = None if bias is None else bias[:, y * q.shape[2] + x]
            out[:, y, x] = torch.einsum("bnh,bnhd->bhd", weights_of(q[:, y, x], keys, own, scale), values)
    return out


@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda c: c.name)
@pytest.mark.usefixtures("one_thread")
def test_equals_brute_force(case: Case) -> None:
    q, k, v, bias = inputs(case)
    torch.testing.assert_close(global_attention(q, k, v, bias), brute_force(q, k, v, bias))


NUMBERS = st.integers(1, 33)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.tuples(NUMBERS, NUMBERS),
    st.tuples(NUMBERS, NUMBERS),
    st.integers(0, 3),
    st.integers(1, 4),
    st.integers(1, 160),
    st.integers(1, 3),
)
def test_kernel_at_any_shape(
    shape: tuple[int, int], keys: tuple[int, int], batch: int, heads: int, head_dim: int, threads: int
) -> None:
    q = torch.randn(batch, heads, *shape, head_dim).permute(0, 2, 3, 1, 4)
    k, v = torch.randn(batch, *keys, 2, heads, head_dim).unbind(3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = global_attention(q, k, v)
    finally:
        torch.set_num_threads(before)
    expected = reference.global_attention(q.double(), k.double(), v.double(), None, None)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)


def test_nan_and_infinity_go_through() -> None:
    """Through the softmax; some of PyTorch's own kernels lose a NaN."""
    q, k, v, _ = inputs(AWKWARD[0], dtype=torch.float32)
    q[0, 0, 0, 0, 0], k[1, 0, 0, 0, 0] = torch.nan, torch.inf
    found, expected = global_attention(q, k, v), brute_force(q, k, v, None)
    assert torch.equal(found.isnan(), expected.isnan())
    assert found.isnan().any()


def test_scale_is_an_argument() -> None:
    tensors = inputs(AWKWARD[0])
    torch.testing.assert_close(global_attention(*tensors, scale=0.7), brute_force(*tensors, scale=0.7))


@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_gradients(case: Case) -> None:
    tensors = [t.requires_grad_() for t in inputs(case, batch=1) if t is not None]
    assert torch.autograd.gradcheck(global_attention, tensors, fast_mode=True)


@pytest.mark.parametrize("case", [c for c in (*MODELS, *AWKWARD) if c.bias], ids=lambda c: c.name)
@pytest.mark.usefixtures("one_thread")
def test_gradient_of_the_bias(case: Case) -> None:
    """weight * (upstream . value - upstream . output), summed over the batch."""
    q, k, v, bias = inputs(case)
    out = global_attention(q, k, v, bias.requires_grad_())
    upstream = torch.randn_like(out)
    (gradient,) = torch.autograd.grad(out, bias, upstream)
    keys, values, bias = k.flatten(1, 2), v.flatten(1, 2), bias.detach()
    for t, (query, result, up) in enumerate(zip(*(x.flatten(1, 2).unbind(1) for x in (q, out, upstream)), strict=True)):
        weights = weights_of(query, keys, bias[:, t], case.head_dim**-0.5)
        expected = weights * (torch.einsum("bhd,bnhd->bnh", up, values) - (up * result).sum(-1)[:, None])
        torch.testing.assert_close(gradient[:, t], expected.sum(0).T)


@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_follow_the_reference(case: Case, dtype: torch.dtype) -> None:
    rounded = inputs(case, batch=1, dtype=dtype)
    out = global_attention(*rounded)
    assert out.dtype == dtype
    expected = global_attention(*(None if t is None else t.double() for t in rounded))
    assert (out.double() - expected).abs().max() < BOUND[dtype] * torch.finfo(dtype).eps


def test_a_wider_bias_keeps_the_dtype() -> None:
    q, k, v, bias = inputs(AWKWARD[0], dtype=torch.bfloat16)
    assert torch.equal(global_attention(q, k, v, bias.float()), global_attention(q, k, v, bias))


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch(batch: int) -> None:
    q, k, v, bias = inputs(AWKWARD[0], batch)
    out = global_attention(q, k, v, bias)
    assert out.shape == q.shape
    for image in range(batch):
        alone = (t[image : image + 1] for t in (q, k, v))
        torch.testing.assert_close(out[image : image + 1], global_attention(*alone, bias))


@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_any_strides(case: Case) -> None:
    *packed, bias = inputs(case)
    expected = global_attention(*(t.contiguous() for t in packed), bias)
    torch.testing.assert_close(global_attention(*packed, bias), expected)
    transposed = [t.transpose(0, 4).contiguous().transpose(0, 4) for t in packed]
    torch.testing.assert_close(
        global_attention(*transposed, None if bias is None else bias.mT.contiguous().mT), expected
    )


@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_two_runs_are_equal(case: Case) -> None:
    tensors = inputs(case, dtype=torch.float32)
    assert torch.equal(global_attention(*tensors), global_attention(*tensors))


def test_compiles_as_one_graph() -> None:
    tensors = inputs(AWKWARD[0])
    compiled = torch.compile(global_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), global_attention(*tensors))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.zeros(2, 3, 4)}, "expected 5: "),
        ({"k": torch.zeros(1, 2, 3, 1, 9)}, "must agree"),
        ({"k": torch.zeros(2, 2, 3, 1, 8)}, "must agree"),
        ({"k": torch.zeros(6, 1, 8)}, "must agree"),
        ({"v": torch.zeros(1, 3, 2, 1, 8)}, "must agree"),
        ({"v": torch.zeros(1, 2, 3, 1, 8, dtype=torch.float64)}, "must agree"),
        ({"v": torch.zeros(1, 2, 3, 1, 8, device="meta")}, "must agree"),
        ({"bias": torch.zeros(1, 6, 16)}, r"bias is \(1, 6, 16\), expected \(1, 16, 6\)"),
        ({"bias": torch.zeros(16, 6)}, r"bias is \(16, 6\), expected \(1, 16, 6\)"),
    ],
)
def test_wrong_arguments(change: dict, words: str) -> None:
    keys = torch.zeros(1, 2, 3, 1, 8)
    with pytest.raises(ValueError, match=words):
        global_attention(**({"q": torch.zeros(1, 4, 4, 1, 8), "k": keys, "v": keys} | change))
