"""The specification of aggregated attention: against a loop over positions, by gradcheck, at every case."""

from __future__ import annotations

import pytest
import torch

from zoo.kernels import aggregated_attention, use_backend
from zoo.kernels.aggregated_attention import tiles, triton_pooled
from zoo.kernels.aggregated_attention.cases import AWKWARD, MODELS, Case
from zoo.kernels.exporting import export_safe

BOUND = {torch.float32: 80, torch.bfloat16: 50, torch.float16: 50}
"""Largest error in units of the dtype's eps; `extra` makes the weights larger than those of a softmax."""
SMALL = [case for case in (*MODELS, *AWKWARD) if case.shape[0] * case.shape[1] <= 200]


def inputs(case: Case, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """q, k, v, pooled_k, pooled_v, local_bias, pooled_bias, extra."""
    return list(case.tensors(batch, dtype=dtype).values())


def window(case: Case, y: int, x: int) -> tuple[torch.Tensor, ...]:
    """The rows and columns around a position that lie on the map, and which taps of the window they are."""
    radius, found = case.size // 2, []
    for tap in range(case.size**2):
        i, j = y + tap // case.size - radius, x + tap % case.size - radius
        if 0 <= i < case.shape[0] and 0 <= j < case.shape[1]:
            found.append((i, j, tap))
    return tuple(torch.tensor(found).T)


def brute_force(q, k, v, pooled_k, pooled_v, local_bias, pooled_bias, extra, case: Case) -> torch.Tensor:
    """Each query alone, against its window cut at the border and every pooled position."""
    pooled_k, pooled_v, out = pooled_k.flatten(1, 2), pooled_v.flatten(1, 2), torch.empty_like(q)
    for y in range(case.shape[0]):
        for x in range(case.shape[1]):
            rows, columns, taps = window(case, y, x)
            keys = torch.cat([k[:, rows, columns], pooled_k], dim=1)
            values = torch.cat([v[:, rows, columns], pooled_v], dim=1)
            bias = torch.cat([local_bias[:, taps], pooled_bias[:, y * case.shape[1] + x]], dim=1)
            weights = (torch.einsum("bnd,bknd->bnk", q[:, y, x], keys) + bias).softmax(-1)
            weights[..., : len(taps)] += extra[:, y, x][..., taps]
            out[:, y, x] = torch.einsum("bnk,bknd->bnd", weights, values)
    return out


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
@pytest.mark.usefixtures("one_thread")
def test_equals_brute_force(case: Case) -> None:
    tensors = inputs(case)
    torch.testing.assert_close(aggregated_attention(*tensors, case.size), brute_force(*tensors, case))


@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda c: c.name)
def test_the_exported_form_equals_the_reference(case: Case) -> None:
    tensors = inputs(case)
    expected = aggregated_attention(*tensors, case.size)
    with export_safe():
        torch.testing.assert_close(aggregated_attention(*tensors, case.size), expected)


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_weights_sum_to_one_plus_extra(case: Case) -> None:
    q, k, v, pooled_k, pooled_v, local_bias, pooled_bias, extra = inputs(case)
    v, pooled_v = torch.ones_like(v), torch.ones_like(pooled_v)
    keys = (q, k, v, pooled_k, pooled_v, local_bias, pooled_bias)
    torch.testing.assert_close(aggregated_attention(*keys, torch.zeros_like(extra), case.size), v)
    out = aggregated_attention(*keys, extra, case.size)
    for y, x in ((0, 0), (case.shape[0] - 1, case.shape[1] // 2)):
        expected = 1 + extra[:, y, x][..., window(case, y, x)[2]].sum(-1)
        torch.testing.assert_close(out[:, y, x], expected[..., None].expand_as(out[:, y, x]))


@pytest.mark.parametrize("case", [AWKWARD[0], AWKWARD[2]], ids=lambda c: c.name)
def test_positions_beyond_the_map_are_masked(case: Case) -> None:
    """The first row neither sees the bias nor the extra of the taps above it; the other rows do."""
    *tensors, local_bias, pooled_bias, extra = inputs(case)
    expected = aggregated_attention(*tensors, local_bias, pooled_bias, extra, case.size)
    local_bias[:, : case.size] += 50
    extra[..., : case.size] += 50
    out = aggregated_attention(*tensors, local_bias, pooled_bias, extra, case.size)
    reach = case.size // 2
    torch.testing.assert_close(out[:, :reach], expected[:, :reach])
    assert (out[:, reach:] - expected[:, reach:]).abs().amax((0, 2, 3, 4)).min() > 1


@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_gradients(case: Case) -> None:
    tensors = [t.requires_grad_() for t in inputs(case, batch=1)]

    def call(*tensors):
        return aggregated_attention(*tensors, case.size)

    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_follow_the_reference(case: Case, dtype: torch.dtype) -> None:
    rounded = inputs(case, batch=1, dtype=dtype)
    out = aggregated_attention(*rounded, case.size)
    assert out.dtype == dtype
    expected = aggregated_attention(*(t.double() for t in rounded), case.size)
    assert (out.double() - expected).abs().max() < BOUND[dtype] * torch.finfo(dtype).eps


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch(batch: int) -> None:
    *tensors, local_bias, pooled_bias, extra = inputs(AWKWARD[0], batch)
    out = aggregated_attention(*tensors, local_bias, pooled_bias, extra)
    assert out.shape == tensors[0].shape
    for image in range(batch):
        *alone, own = (t[image : image + 1] for t in (*tensors, extra))
        torch.testing.assert_close(out[image : image + 1], aggregated_attention(*alone, local_bias, pooled_bias, own))


@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_any_strides(case: Case) -> None:
    packed = inputs(case)
    expected = aggregated_attention(*(t.contiguous() for t in packed), case.size)
    torch.testing.assert_close(aggregated_attention(*packed, case.size), expected)
    transposed = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in packed]
    torch.testing.assert_close(aggregated_attention(*transposed, case.size), expected)


@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_two_runs_are_equal(case: Case) -> None:
    tensors = inputs(case, dtype=torch.float32)
    assert torch.equal(*(aggregated_attention(*tensors, case.size) for _ in range(2)))


def assert_triton_equals_the_reference(case: Case, batch: int) -> None:
    """The output and every gradient."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = [t.to(device).requires_grad_() for t in inputs(case, batch, dtype=torch.float32)]
    results = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            out = aggregated_attention(*tensors, case.size)
        results.append([out, *torch.autograd.grad(out.sin().sum(), tensors)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_triton_splits_a_large_batch() -> None:
    """Gradients of biases are sums over images; from the ninth image on they are sums of parts."""
    assert_triton_equals_the_reference(AWKWARD[3], batch=17)


@pytest.mark.parametrize(
    "case",
    [
        Case("several tiles, pooled keys in two blocks", (5, 9), (5, 7), 1, 8),
        Case("more pooled keys than keep their bias", (3, 4), (5, 13), 1, 8),
        Case("a box of two blocks", (6, 5), (1, 2), 2, 8, 5),
    ],
    ids=lambda c: c.name,
)
def test_triton_programs_loop_over_images(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU of a single multiprocessor."""
    for module in (tiles, triton_pooled):
        monkeypatch.setattr(module, "multiprocessors", lambda device: 1)
    assert_triton_equals_the_reference(case, batch=3)


@pytest.mark.parametrize(("rounds", "items", "resident"), [(0, 5, 4), (1, 1000, 528), (64, 196, 528), (64, 1, 528)])
def test_triton_loops_fill_waves(rounds: int, items: int, resident: int) -> None:
    length = tiles.loop_length(rounds, items, resident)
    assert 0 <= length <= max(1, rounds)
    if rounds == 64:
        programs = items * -(-rounds // length)
        assert programs <= resident or programs / (-(-programs // resident) * resident) > 0.9


def test_compiles_as_one_graph() -> None:
    tensors = inputs(AWKWARD[2])
    compiled = torch.compile(aggregated_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors, 5), aggregated_attention(*tensors, 5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.zeros(2, 3, 4)}, "expected 5: "),
        ({"k": torch.zeros(1, 4, 5, 1, 9)}, "must agree"),
        ({"v": torch.zeros(1, 5, 4, 1, 8)}, "must agree"),
        ({"v": torch.zeros(1, 4, 5, 1, 8, dtype=torch.float64)}, "must agree"),
        ({"pooled_k": torch.zeros(2, 2, 3, 1, 8)}, "must agree"),
        ({"pooled_k": torch.zeros(6, 1, 8)}, "must agree"),
        ({"pooled_v": torch.zeros(1, 3, 2, 1, 8)}, "must agree"),
        ({"pooled_v": torch.zeros(1, 2, 3, 1, 8, device="meta")}, "must agree"),
        ({"local_bias": torch.zeros(1, 3, 3)}, r"local_bias is \(1, 3, 3\), expected \(1, 9\)"),
        ({"pooled_bias": torch.zeros(1, 6, 20)}, r"pooled_bias is \(1, 6, 20\), expected \(1, 20, 6\)"),
        ({"extra": torch.zeros(1, 4, 5, 9)}, r"extra is \(1, 4, 5, 9\), expected \(1, 4, 5, 1, 9\)"),
        ({"size": 5}, r"local_bias is \(1, 9\), expected \(1, 25\)"),
        ({"size": 2}, "size is 2, expected an odd number"),
        ({"size": -1}, "size is -1, expected an odd number"),
    ],
)
def test_wrong_arguments(change: dict, words: str) -> None:
    near, pooled = torch.zeros(1, 4, 5, 1, 8), torch.zeros(1, 2, 3, 1, 8)
    arguments = {"q": near, "k": near, "v": near, "pooled_k": pooled, "pooled_v": pooled}
    arguments |= {"local_bias": torch.zeros(1, 9), "pooled_bias": torch.zeros(1, 20, 6)}
    arguments |= {"extra": torch.zeros(1, 4, 5, 1, 9)}
    with pytest.raises(ValueError, match=words):
        aggregated_attention(**(arguments | change))
