"""The specification of window attention: against a loop, by gradcheck, at every case."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

from tests.kernels.test_backends import _assert_close, _name
from zoo.kernels import use_backend, window_attention
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


HALF, SINGLE = torch.float16, torch.float32
LAUNCHES = (
    (Case("several groups in a tile, whole", (8, 6), 2, 16, (4, 3), (2, 1)), HALF),
    (Case("several groups in a tile, padded", (7, 5), 1, 16, (3, 3), (1, 2)), HALF),
    (Case("one group in a tile", (7, 9), 1, 16, (6, 6)), HALF),
    (Case("without tensor cores", (7, 9), 1, 16, (6, 6)), SINGLE),
    (Case("wide head: packed forward, cut backward", (6, 12), 1, 40, (6, 6)), HALF),
    (Case("128 queries", (9, 18), 1, 16, (9, 9)), HALF),
    (Case("128 queries, padded", (11, 10), 1, 8, (5, 20), (1, 1)), HALF),
    (Case("64 queries", (12, 12), 1, 16, (12, 12)), HALF),
    (Case("64 queries, no bias", (13, 10), 1, 16, (13, 10), bias=False), HALF),
    (Case("long groups without tensor cores", (9, 9), 1, 16, (9, 9)), SINGLE),
)
"""A case of each way in which Triton kernels are launched."""
PROGRAMS = (*((*launch, 1) for launch in LAUNCHES), *((*launch, 6) for launch in LAUNCHES[1::3]))
"""One program goes through everything; of a few cases six, which do not divide it."""
KERNELS = ("packed", "packed_backward", "cut", "cut_queries", "cut_keys", "cut_bias")


@pytest.mark.parametrize(("case", "dtype", "programs"), PROGRAMS, ids=_name)
def test_a_program_goes_through_places_and_images(
    case: Case, dtype: torch.dtype, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU that runs so few programs at once: all images, or some and then the rest."""
    pytest.importorskip("triton")
    package = "zoo.kernels.window_attention.triton"
    for kernel in KERNELS:
        monkeypatch.setattr(import_module(f"{package}_{kernel}"), "PER_SM", 1)
    monkeypatch.setattr(import_module(f"{package}_plan"), "multiprocessors", lambda device: programs)
    with use_backend("triton"):
        _assert_close("window_attention", case, dtype, "triton", batch=3)


if find_spec("triton"):
    import triton
    import triton.language as tl

    from zoo.kernels.window_attention.triton_bias import blocks_of, pairs_of, read_table, table_of

    @triton.jit
    def _tile(table, like, out, DOWN: tl.constexpr, ACROSS: tl.constexpr):
        pairs = pairs_of(read_table(table, 1, 64, 64, DOWN, ACROSS, 64, 32), like.dtype.element_ty, 64, 32)
        tl.store(out + tl.arange(0, 64)[:, None] * 32 + tl.arange(0, 32)[None, :], pairs)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_table_of_the_bias(dtype: torch.dtype) -> None:
        """What is read from it are pairs where they were, and minus infinity beyond."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        bias, out = torch.randn(2, 70, 70, device=device), torch.empty(64, 32, device=device)
        bias = bias.to(dtype)
        _tile[(1,)](table_of(bias, dtype), bias, out, *blocks_of(70))
        assert torch.equal(out[:6, :6], bias[1, 64:, 64:].float())
        assert (out[:, 6:] == -torch.inf).all()
