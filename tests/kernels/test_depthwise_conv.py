"""Depthwise convolutions against PyTorch's, over their whole domain."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from zoo.kernels import depthwise_conv
from zoo.kernels.depthwise_conv import native, reference
from zoo.kernels.depthwise_conv.cases import AWKWARD, MODELS, Case
from zoo.nn.layers.packed import PackedDepthwise


def assert_equal_to_reference(case: Case, batch: int = 2, nchw: bool = False) -> None:
    x = torch.randn(batch, *case.shape, case.channels)
    x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) if nchw else x
    weight, bias = torch.randn(case.kernel, case.kernel, case.channels), torch.randn(case.channels)
    with torch.inference_mode():
        found = depthwise_conv(x, weight, bias, case.stride, case.padding, case.act)
        exact = (x.double(), weight.double(), bias.double(), case.stride, case.padding, case.act)
        expected = reference.depthwise_conv(*exact)
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda case: case.name)
def test_equals_the_reference(case: Case) -> None:
    assert_equal_to_reference(case)


NUMBERS, FEW = st.integers(1, 33), st.integers(0, 4)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    shape=st.tuples(NUMBERS, NUMBERS),
    channels=st.integers(1, 70),
    kernel=st.sampled_from([1, 3, 5, 7, 9]),
    stride=st.integers(1, 3),
    padding=st.tuples(FEW, FEW),
    act=st.sampled_from(list(reference.ACTIVATIONS)),
    batch=st.integers(0, 3),
    threads=st.integers(1, 3),
    nchw=st.booleans(),
)
def test_any_shapes_strides_and_threads(
    shape: tuple[int, int],
    channels: int,
    kernel: int,
    stride: int,
    padding: tuple[int, int],
    act: str,
    batch: int,
    threads: int,
    nchw: bool,
) -> None:
    height, width = (max(n, kernel - 2 * p) for n, p in zip(shape, padding, strict=True))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_equal_to_reference(Case("", (height, width), channels, kernel, stride, padding, act), batch, nchw)
    finally:
        torch.set_num_threads(before)


def test_nan_stays_where_its_taps_are() -> None:
    x = torch.zeros(2, 9, 9, 20)
    x[1, 4, 4, 3] = math.nan
    with torch.inference_mode():
        found = depthwise_conv(x, torch.ones(3, 3, 20), torch.zeros(20), padding=(1, 1)).isnan()
    assert found.sum() == 9
    assert found[1, 3:6, 3:6, 3].all()


def test_limits_and_wrong_calls_say_why() -> None:
    assert "kernels of 3, 5 or 7" in native.limit(64, 9, 1)
    assert "strides of 1 or 2" in native.limit(64, 3, 3)
    assert f"at least {native.lanes()} channels" in native.limit(1, 3, 1)
    assert native.limit(64, 7, 2) == ""
    x, weight, bias = torch.zeros(1, 4, 4, 8), torch.zeros(3, 3, 8), torch.zeros(8)
    for arguments, settings_, match in (
        ((x[..., :4], weight, bias), {}, "expected"),
        ((x, weight[:2], bias), {}, "expected"),
        ((x, weight, bias[:4]), {}, r"expected \(8,\)"),
        ((x[:, :2], weight, bias), {}, "at least the kernel 3"),
        ((x, weight, bias), {"act": "relu"}, "expected one of none, gelu"),
    ):
        with pytest.raises(ValueError, match=match):
            depthwise_conv(*arguments, **settings_)


def test_gradients_are_pytorchs() -> None:
    layer, x = nn.Conv2d(20, 20, 3, 2, 1, groups=20), torch.randn(2, 20, 9, 7, requires_grad=True)
    packed = PackedDepthwise(layer)
    found = packed(x.permute(0, 2, 3, 1), F.gelu).permute(0, 3, 1, 2)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, F.gelu(layer(x)))]
    torch.testing.assert_close(*gradients)
