"""The specification of channel attention: against a loop, by gradcheck, at every case."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.kernels import channel_attention
from zoo.kernels.channel_attention import reference
from zoo.kernels.channel_attention.cases import AWKWARD, MODELS, Case

NUMBERS = st.integers(1, 33)


def inputs(case: Case) -> list[torch.Tensor]:
    return list(torch.randn(2, *case.shape, 3, case.heads, case.head_dim, dtype=torch.float64).unbind(3))


@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda c: c.name)
def test_equals_a_loop_over_heads(case: Case) -> None:
    q, k, v = inputs(case)
    out = channel_attention(q, k, v)
    for head in range(case.heads):
        one_q, one_k, one_v = (t[:, :, :, head].flatten(1, 2) for t in (q, k, v))
        weights = torch.einsum("bni,bnj->bij", one_k * case.head_dim**-0.5, one_v).softmax(-1)
        expected = torch.einsum("bij,bnj->bni", weights, one_q)
        torch.testing.assert_close(out[:, :, :, head].flatten(1, 2), expected)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(0, 3), NUMBERS, NUMBERS),
    st.integers(1, 5),
    st.sampled_from([8, 16, 32, 48, 64, 96]),
    st.integers(1, 3),
    st.sampled_from(["one tensor", "heads first", "each its own"]),
)
def test_kernel_at_any_shape(shape: tuple[int, int, int], heads: int, head_dim: int, threads: int, layout: str) -> None:
    q, k, v = torch.randn(*shape, 3, heads, head_dim).unbind(3)
    if layout == "heads first":
        q, k, v = (t.transpose(1, 4).contiguous().transpose(1, 4) for t in (q, k, v))
    elif layout == "each its own":
        q, k, v = (t.contiguous() for t in (q, k, v))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = channel_attention(q, k, v)
    finally:
        torch.set_num_threads(before)
    expected = reference.channel_attention(q.double(), k.double(), v.double(), None)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_nan_stays_in_its_head() -> None:
    q, k, v = torch.randn(1, 4, 5, 3, 2, 16).unbind(3)
    k[0, 1, 2, 1, 3] = math.nan
    found, expected = channel_attention(q, k, v), reference.channel_attention(q, k, v, None)
    assert torch.equal(found.isnan(), expected.isnan())
    assert found.isnan().any()


@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_gradients(case: Case) -> None:
    assert torch.autograd.gradcheck(channel_attention, [t.requires_grad_() for t in inputs(case)], fast_mode=True)


def test_scale_is_an_argument() -> None:
    q, k, v = inputs(AWKWARD[0])
    torch.testing.assert_close(channel_attention(q, k, v, 0.5), channel_attention(q, k * 2, v, 0.25))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="expected 5"):
        channel_attention(*[torch.zeros(2, 3, 4)] * 3)
