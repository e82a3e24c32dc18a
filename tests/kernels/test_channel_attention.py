"""The specification of channel attention: against a loop, by gradcheck, at every case."""

from __future__ import annotations

import pytest
import torch

from zoo.kernels import channel_attention
from zoo.kernels.channel_attention.cases import AWKWARD, MODELS, Case


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


@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_gradients(case: Case) -> None:
    assert torch.autograd.gradcheck(channel_attention, [t.requires_grad_() for t in inputs(case)], fast_mode=True)


def test_scale_is_an_argument() -> None:
    q, k, v = inputs(AWKWARD[0])
    torch.testing.assert_close(channel_attention(q, k, v, 0.5), channel_attention(q, k * 2, v, 0.25))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="expected 5"):
        channel_attention(*[torch.zeros(2, 3, 4)] * 3)
