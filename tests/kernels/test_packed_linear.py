"""Packed layers against PyTorch's, over their whole domain."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from zoo.kernels import pack, packed_conv, use_backend
from zoo.kernels.packed_linear import native, reference
from zoo.kernels.packed_linear.api import packed_mlp, unpack
from zoo.kernels.packed_linear.cases import AWKWARD, MODELS, Case
from zoo.nn.layers import cpu
from zoo.nn.layers.packed import PackedConv, PackedLayerNorm


def tensors(case: Case, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(batch, *case.shape, case.channels)
    weight = torch.randn(case.outputs, case.channels, *case.kernel) / math.sqrt(case.channels * math.prod(case.kernel))
    return x, weight, torch.randn(case.outputs)


def assert_equal_to_reference(
    case: Case, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype = torch.float32
) -> None:
    """In bfloat16 against exact products of rounded numbers."""
    panels, padded = pack(weight, bias, dtype)
    weight = weight.to(dtype)
    assert torch.equal(unpack(panels, case.outputs, case.channels, case.kernel), weight)
    with torch.inference_mode():
        found = packed_conv(x, panels, padded, case.outputs, case.kernel, case.stride, case.act)
        rounded = x.to(dtype) if dtype == torch.float32 or native.has_bfloat16() else x
        expected = reference.packed_conv(rounded.double(), weight.double(), bias.double(), case.stride, case.act)
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)


DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda case: case.name)
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    assert_equal_to_reference(case, *tensors(case), dtype)


NUMBERS, FEW = st.integers(1, 33), st.integers(1, 5)
CASES = st.builds(
    lambda shape, channels, outputs, kernel, stride, act: Case(
        "", (max(shape[0], kernel[0]), max(shape[1], kernel[1])), channels, outputs, kernel, stride, act
    ),
    st.tuples(NUMBERS, NUMBERS),
    NUMBERS,
    st.integers(1, 70),
    st.tuples(FEW, FEW),
    st.tuples(FEW, FEW),
    st.sampled_from(list(reference.ACTIVATIONS)),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    CASES,
    st.integers(0, 3),
    st.integers(1, 3),
    st.sampled_from(["NHWC", "NCHW", "part of another"]),
    st.sampled_from(DTYPES),
)
def test_any_shapes_strides_and_threads(case: Case, batch: int, threads: int, layout: str, dtype: torch.dtype) -> None:
    x, weight, bias = tensors(case, batch)
    if layout == "NCHW":
        x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    elif layout == "part of another":
        x = torch.cat([x, x, x], dim=3)[..., case.channels : 2 * case.channels]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_equal_to_reference(case, x, weight, bias, dtype)
    finally:
        torch.set_num_threads(before)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.tuples(NUMBERS, NUMBERS),
    NUMBERS,
    st.integers(1, 70),
    NUMBERS,
    st.integers(0, 2),
    st.integers(1, 3),
    st.sampled_from(DTYPES),
)
def test_two_layers_in_one(
    shape: tuple[int, int],
    channels: int,
    hidden: int,
    outputs: int,
    batch: int,
    threads: int,
    dtype: torch.dtype,
) -> None:
    x, first, second = torch.randn(batch, *shape, channels), nn.Linear(channels, hidden), nn.Linear(hidden, outputs)
    layers = [PackedConv(layer, dtype).packed for layer in (first, second)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            found = packed_mlp(x, *layers, hidden, outputs, "gelu")
            expected = second(F.gelu(first(x)))
        error = 2e-5 if dtype == torch.float32 else 5e-2
        torch.testing.assert_close(found, expected, atol=error, rtol=error)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh", "silu"])
def test_activations(act: str) -> None:
    """As exact as PyTorch's in double precision. NaN stays NaN and infinity infinity, which PyTorch's may make NaN."""
    x = torch.cat([torch.linspace(-12, 12, 100_003), torch.tensor([0.0, -0.0, 1e-30, 1e30, -1e30])])
    exact = reference.ACTIVATIONS[act](x.double())
    torch.testing.assert_close(native.activate_(x.clone(), act).double(), exact, atol=3e-6, rtol=1e-6)
    odd = torch.tensor([math.nan, math.inf, -math.inf])
    found = native.activate_(odd.clone(), act)
    assert found[0].isnan()
    assert found[1] == math.inf
    assert found[2].isnan() or found[2] == 0


def test_nan_stays_in_its_row() -> None:
    x, weight, bias = tensors(AWKWARD[1])
    x[1, 2, 3, 4] = math.nan
    with torch.inference_mode():
        found = packed_conv(x, *pack(weight, bias), AWKWARD[1].outputs, act="gelu")
    assert found[1, 2, 3].isnan().all()
    assert found.isnan().sum() == AWKWARD[1].outputs


def test_layer_norms() -> None:
    for width in (1, 5, 16, 96, 100):
        own = nn.LayerNorm(width, eps=1e-6)
        nn.init.normal_(own.weight)
        nn.init.normal_(own.bias)
        packed = PackedLayerNorm(width, eps=1e-6)
        packed.load_state_dict(own.state_dict())
        for x in (torch.randn(3, 5, width), 100 + torch.randn(7, width), torch.zeros(2, width), torch.randn(0, width)):
            with torch.inference_mode():
                torch.testing.assert_close(packed(x), own(x), atol=1e-4, rtol=1e-4)


def test_wrong_calls_say_what_was_expected() -> None:
    panels, bias = pack(torch.randn(8, 4), torch.randn(8))
    x = torch.randn(1, 3, 3, 4)
    for arguments, settings_, match in (
        ((x[..., :3], panels, bias, 8), {}, "do not fit"),
        ((x[0], panels, bias, 8), {}, "do not fit"),
        ((x, panels, bias[:8], 8), {}, "for 8 outputs"),
        ((x, panels, bias, 1000), {}, "for 1000 outputs"),
        ((x, panels, bias, 8), {"act": "relu"}, "expected one of none, gelu"),
        ((x[:, :0], panels, bias, 8), {}, "pad it first"),
    ):
        with pytest.raises(ValueError, match=match), torch.inference_mode():
            packed_conv(*arguments, **settings_)


def test_elsewhere_pytorch_computes_it() -> None:
    """With gradients, in another dtype, with panels of another processor, by request."""
    layer, x = nn.Linear(6, 9), torch.randn(2, 3, 4, 6)
    packed, expected = PackedConv(layer), F.gelu(layer(x))
    needs_grad = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(packed(needs_grad, F.gelu).sum(), needs_grad)
    (own,) = torch.autograd.grad(F.gelu(layer(needs_grad)).sum(), needs_grad)
    torch.testing.assert_close(gradient, own)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x.double(), F.gelu).float(), expected)
        with use_backend("reference"):
            torch.testing.assert_close(packed(x, F.gelu), expected)
        packed.panels = packed.panels.transpose(1, 2).reshape(-1, 2, 6).transpose(1, 2).contiguous()
        torch.testing.assert_close(packed(x, F.gelu), expected)


def test_modules_are_pickled_and_hooked() -> None:
    packed, x = PackedConv(nn.Conv2d(3, 20, 3, 2, 1)), torch.randn(2, 9, 11, 3)
    seen: list[torch.Tensor] = []
    with torch.inference_mode():
        expected = packed(x)
        assert torch.equal(pickle.loads(pickle.dumps(packed))(x), expected)
        packed.register_forward_hook(lambda module, inputs, output: seen.append(output))
        assert torch.equal(cpu.conv(packed, x), expected)
    assert len(seen) == 1
