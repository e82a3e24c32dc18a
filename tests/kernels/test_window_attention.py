"""The specification of window attention: against a loop, by gradcheck, at every case."""

from __future__ import annotations

import pytest
import torch

from zoo.kernels import window_attention
from zoo.kernels.partition import partition, unpartition
from zoo.kernels.window_attention.cases import AWKWARD, MODELS, Case


def inputs(case: Case, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    tokens = case.size[0] * case.size[1]
    qkv = torch.randn(batch, *case.shape, 3, case.heads, case.head_dim, dtype=dtype).unbind(3)
    return [*qkv, torch.randn(case.heads, tokens, tokens, dtype=dtype)] if case.bias else [*qkv, None]


def brute_force(q, k, v, bias, case: Case) -> torch.Tensor:
    """Each position against the positions of its own group, found by their coordinates."""
    (height, width), (h, w), (ih, iw) = case.shape, case.size, case.interval
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    group = torch.stack([y // (h * ih), y % ih, x // (w * iw), x % iw], dim=1)
    token = (y // ih % h) * w + x // iw % w
    together = (group[:, None] == group[None]).all(-1)
    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
    logits = q @ k.transpose(-2, -1) * case.head_dim**-0.5
    if bias is not None:
        logits = logits + bias[:, token[:, None], token[None, :]]
    weights = logits.masked_fill(~together, float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2).unflatten(1, case.shape)


@pytest.mark.parametrize(
    "case", [c for c in (*MODELS, *AWKWARD) if c.shape[0] * c.shape[1] < 1000], ids=lambda c: c.name
)
def test_equals_brute_force(case: Case) -> None:
    q, k, v, bias = inputs(case)
    out = window_attention(q, k, v, case.size, case.interval, bias)
    torch.testing.assert_close(out, brute_force(q, k, v, bias, case))


@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_gradients(case: Case) -> None:
    tensors = [t.requires_grad_() for t in inputs(case, batch=1) if t is not None]

    def call(q, k, v, bias=None):
        return window_attention(q, k, v, case.size, case.interval, bias)

    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_follow_the_reference(case: Case, dtype: torch.dtype) -> None:
    exact = inputs(case, batch=1)
    rounded = [None if t is None else t.to(dtype) for t in exact]
    q, k, v, bias = rounded
    out = window_attention(q, k, v, case.size, case.interval, bias)
    assert out.dtype == dtype
    q, k, v, bias = (None if t is None else t.double() for t in rounded)
    expected = window_attention(q, k, v, case.size, case.interval, bias)
    assert (out.double() - expected).abs().max() < 40 * torch.finfo(dtype).eps


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch(batch: int) -> None:
    q, k, v, bias = inputs(AWKWARD[0], batch)
    assert window_attention(q, k, v, 4, 1, bias).shape == q.shape


def test_partition_and_back() -> None:
    x = torch.arange(2 * 12 * 24 * 3).view(2, 12, 24, 3)
    groups = partition(x, (2, 3), (3, 4))
    assert groups.shape == (2, 2 * 3 * 2 * 4, 6, 3)
    assert groups[0, 0, :, 0].tolist() == [x[0, i, j, 0].item() for i in (0, 3) for j in (0, 4, 8)]
    assert torch.equal(unpartition(groups, (2, 3), (3, 4), (12, 24)), x)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.zeros(2, 3, 4)}, "5: "),
        ({"k": torch.zeros(1, 4, 4, 1, 9)}, "must agree"),
        ({"v": torch.zeros(1, 4, 4, 1, 8, dtype=torch.float64)}, "must agree"),
        ({"bias": torch.zeros(2, 4, 4)}, "bias"),
        ({"size": 0}, "size"),
        ({"interval": (1, 2, 3)}, "interval"),
    ],
)
def test_wrong_arguments(change: dict, words: str) -> None:
    tensor = torch.zeros(1, 4, 4, 1, 8)
    arguments = {"q": tensor, "k": tensor, "v": tensor, "size": 2} | change
    with pytest.raises(ValueError, match=words):
        window_attention(**arguments)
