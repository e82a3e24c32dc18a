"""The specification of deformable convolution: against the formula and torchvision, by gradcheck, at every case."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from zoo.kernels import deform_conv
from zoo.kernels.deform_conv import reference, vision_op
from zoo.kernels.deform_conv.api import taps
from zoo.kernels.deform_conv.cases import AWKWARD, MODELS, Case

SMALL = [case for case in (*MODELS, *AWKWARD) if case.shape[0] * case.shape[1] <= 200]
ROUTES = {"reference": reference.deform_conv, "torchvision": vision_op.deform_conv}


def positions(case: Case) -> torch.Tensor:
    """Where the taps stand before offsets are added, (h, w, 2 * kh * kw)."""
    (kh, kw), (sh, sw) = case.kernel, case.stride
    h, w = ((n - k) // s + 1 for n, k, s in zip(case.shape, case.kernel, case.stride, strict=True))
    taps = [[[(sh * p + i, sw * q + j) for i in range(kh) for j in range(kw)] for q in range(w)] for p in range(h)]
    return torch.tensor(taps).flatten(2)


def inputs(case: Case, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """x, offset, weight, bias; outputs are about as large as inputs."""
    taps = case.channels[0] * case.kernel[0] * case.kernel[1]
    x = torch.randn(batch, *case.shape, case.channels[0], dtype=dtype)
    offset = case.spread * torch.randn(batch, *positions(case).shape, dtype=dtype)
    weight = torch.randn(case.channels[1], case.channels[0], *case.kernel, dtype=dtype) * taps**-0.5
    return [x, offset, weight, torch.randn(case.channels[1], dtype=dtype)]


def off_the_kinks(offset: torch.Tensor) -> torch.Tensor:
    """Offsets at least 0.2 from the next integer, where the interpolation has no derivative."""
    return offset.floor() + 0.2 + 0.6 * (offset - offset.floor())


def gradients(call, tensors: list[torch.Tensor], upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
    tensors = [t.detach().requires_grad_() for t in tensors]
    return torch.autograd.grad(call(*tensors), tensors, upstream)


def brute_force(x, offset, weight, bias, case: Case) -> torch.Tensor:
    """Each tap alone reads the whole map, every position weighted by max(0, 1 - distance) on each axis."""
    where = (positions(case) + offset).unflatten(-1, (*case.kernel, 2))
    out = bias.expand(*where.shape[:3], -1)
    for i in range(case.kernel[0]):
        for j in range(case.kernel[1]):
            axes = zip(where[:, :, :, i, j].unbind(-1), case.shape, strict=True)
            rows, columns = ((1 - (t[..., None] - torch.arange(n)).abs()).clamp(min=0) for t, n in axes)
            read = torch.einsum("bpqs,bpqsc->bpqc", columns, torch.einsum("bpqr,brsc->bpqsc", rows, x))
            out = out + read @ weight[:, :, i, j].T
    return out


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_equals_brute_force(case: Case, route: str) -> None:
    tensors = inputs(case)
    torch.testing.assert_close(ROUTES[route](*tensors, case.stride), brute_force(*tensors, case))


@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda c: c.name)
def test_reference_equals_torchvision(case: Case) -> None:
    tensors = inputs(case)
    out = vision_op.deform_conv(*tensors, case.stride)
    torch.testing.assert_close(reference.deform_conv(*tensors, case.stride), out)
    upstream = torch.randn_like(out)
    both = [gradients(lambda *t, op=op: op(*t, case.stride), tensors, upstream) for op in ROUTES.values()]
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("where", ["zero", "whole"])
@pytest.mark.parametrize("case", [*MODELS[1:], *AWKWARD], ids=lambda c: c.name)
def test_gradient_of_the_offset_between_two_pieces(case: Case, where: str) -> None:
    """At integer positions of the map, where models start, both take the slope towards the next position."""
    x, offset, weight, bias = inputs(case)
    limits = torch.tensor(case.shape).repeat(case.kernel[0] * case.kernel[1])
    target = (torch.rand_like(offset) * limits).floor()
    offset = torch.zeros_like(offset) if where == "zero" else target - positions(case)
    tensors = [x, offset, weight, bias]
    upstream = torch.randn(*offset.shape[:3], len(weight), dtype=x.dtype)
    both = [gradients(lambda *t, op=op: op(*t, case.stride), tensors, upstream) for op in ROUTES.values()]
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert both[0][1].abs().max() > 0.1


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda c: c.name)
def test_zero_offsets_give_an_ordinary_convolution(case: Case, route: str) -> None:
    x, offset, weight, bias = inputs(case, batch=1)
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, case.stride).permute(0, 2, 3, 1)
    out = ROUTES[route](x, torch.zeros_like(offset), weight, bias, case.stride)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("route", ROUTES)
def test_far_beyond_the_map_everything_is_zero(route: str) -> None:
    x, offset, weight, bias = inputs(AWKWARD[0])
    for far in (-1e9, 1e9):
        out = ROUTES[route](x, torch.full_like(offset, far), weight, bias, (2, 2))
        torch.testing.assert_close(out, bias.expand_as(out))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_gradients(case: Case, route: str) -> None:
    x, offset, weight, bias = inputs(case, batch=1)
    tensors = [t.requires_grad_() for t in (x, off_the_kinks(offset), weight, bias)]

    def call(*tensors):
        return ROUTES[route](*tensors, case.stride)

    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_follow_the_reference(case: Case, dtype: torch.dtype) -> None:
    """Positions are single precision in all of them; their error grows with the map."""
    rounded = inputs(case, batch=1, dtype=dtype)
    out = deform_conv(*rounded, case.stride)
    assert out.dtype == dtype
    expected = deform_conv(*(t.double() for t in rounded), case.stride)
    bound = 10 * torch.finfo(dtype).eps + 4 * max(case.shape) * torch.finfo(torch.float32).eps
    assert (out.double() - expected).abs().max() < bound


@pytest.mark.parametrize("route", ROUTES)
def test_narrower_offsets_keep_the_dtype(route: str) -> None:
    """As under autocast, where a convolution computes the offsets."""
    x, offset, weight, bias = inputs(AWKWARD[0], dtype=torch.float32)
    offset = offset.bfloat16()
    out = ROUTES[route](x, offset, weight, bias, (2, 2))
    torch.testing.assert_close(out, ROUTES[route](x, offset.float(), weight, bias, (2, 2)))


@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda c: c.name)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "part of another"])
def test_what_the_taps_read(case: Case, layout: str) -> None:
    """The C++ kernel: inside, across and far beyond the borders, and nowhere."""
    x, offset, _, _ = inputs(case, dtype=torch.float32)
    offset.flatten()[:4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])
    if layout == "NCHW":
        x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    elif layout == "part of another":
        x = torch.cat([x, x], dim=3)[..., : case.channels[0]]
    expected = reference.taps(x.double(), offset.double(), case.kernel, case.stride)
    error = 4 * max(case.shape) * torch.finfo(torch.float32).eps  # positions are single precision
    found = taps(x, offset, case.kernel, case.stride).double()
    torch.testing.assert_close(found, expected, atol=error, rtol=error, equal_nan=True)
    assert found.isnan().any()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch(batch: int, route: str) -> None:
    x, offset, weight, bias = inputs(AWKWARD[0], batch)
    out = ROUTES[route](x, offset, weight, bias, (2, 2))
    assert out.shape == (batch, 3, 4, 6)
    for image in range(batch):
        alone = ROUTES[route](x[image : image + 1], offset[image : image + 1], weight, bias, (2, 2))
        torch.testing.assert_close(out[image : image + 1], alone)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_any_strides(case: Case, route: str) -> None:
    tensors = inputs(case)
    expected = ROUTES[route](*tensors, case.stride)
    transposed = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in tensors]
    torch.testing.assert_close(ROUTES[route](*transposed, case.stride), expected)
    packed = [torch.stack([t, t], dim=1).unbind(1)[1] for t in tensors]
    torch.testing.assert_close(ROUTES[route](*packed, case.stride), expected)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_two_runs_are_equal(case: Case, route: str) -> None:
    tensors = inputs(case, dtype=torch.float32)
    assert torch.equal(*(ROUTES[route](*tensors, case.stride) for _ in range(2)))


def test_bias_may_be_left_out() -> None:
    x, offset, weight, bias = inputs(AWKWARD[0])
    expected = deform_conv(x, offset, weight, bias, 2) - bias
    for route in ROUTES.values():
        torch.testing.assert_close(route(x, offset, weight, None, (2, 2)), expected)
    torch.testing.assert_close(deform_conv(x, offset, weight, stride=2), expected)


def test_compiles_as_one_graph() -> None:
    case = AWKWARD[2]
    tensors = inputs(case)
    compiled = torch.compile(deform_conv, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors, case.stride), deform_conv(*tensors, case.stride))


def test_exports_without_torchvision() -> None:
    class Module(torch.nn.Module):
        def forward(self, x, offset, weight, bias):
            return deform_conv(x, offset, weight, bias, 2)

    tensors = inputs(AWKWARD[0], dtype=torch.float32)
    program = torch.export.export(Module(), tuple(tensors))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called
    assert not [name for name in called if "torchvision" in name]
    torch.testing.assert_close(program.module()(*tensors), deform_conv(*tensors, 2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(6, 5, 3)}, r"x is \(6, 5, 3\), .* expected \(B, H, W, C\)"),
        ({"x": torch.zeros(1, 6, 5, 4)}, r"expected \(B, H, W, C\) and \(.., C, ..\)"),
        ({"x": torch.zeros(1, 1, 5, 3)}, r"the map is \(1, 5\), expected at least the kernel \(2, 2\)"),
        ({"weight": torch.zeros(4, 3, 2)}, r"weight \(4, 3, 2\): expected"),
        ({"weight": torch.zeros(4, 3, 2, 6)}, r"expected at least the kernel \(2, 6\)"),
        ({"offset": torch.zeros(1, 8, 3, 2)}, r"offset is \(1, 8, 3, 2\), expected \(1, 3, 2, 8\)"),
        ({"offset": torch.zeros(2, 3, 2, 8)}, r"expected \(1, 3, 2, 8\)"),
        ({"stride": 1}, r"offset is \(1, 3, 2, 8\), expected \(1, 5, 4, 8\)"),
        ({"stride": 0}, "stride is 0, expected one or two positive integers"),
        ({"stride": (1, 2, 3)}, "stride is .* expected one or two positive integers"),
    ],
)
def test_wrong_arguments(change: dict, words: str) -> None:
    arguments = {"x": torch.zeros(1, 6, 5, 3), "offset": torch.zeros(1, 3, 2, 8)}
    arguments |= {"weight": torch.zeros(4, 3, 2, 2), "bias": torch.zeros(4), "stride": 2}
    with pytest.raises(ValueError, match=words):
        deform_conv(**(arguments | change))
