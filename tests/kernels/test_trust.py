"""Kernels trust nobody: default dtypes and devices, large windows, NaN and infinity, and what must not reach C++."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import zoo
import zoo.kernels
from tests.conftest import SMALLEST
from tests.kernels.test_backends import OPERATIONS, _module, _results
from zoo.kernels import deform_conv, explain_backend, native, neighborhood_attention, use_backend


@contextmanager
def _defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


DEFAULTS = [(torch.bfloat16, "cpu"), (torch.float16, "cpu"), (torch.float64, "cpu"), (torch.float32, "meta")]


@pytest.mark.parametrize(("dtype", "device"), DEFAULTS, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_defaults_change_no_operation(operation: str, dtype: torch.dtype, device: str) -> None:
    case = _module(operation).AWKWARD[0]
    tensors = case.tensors(2, dtype=torch.float32)
    with use_backend("native"):
        expected = _results(operation, case, tensors)
        with _defaults(dtype, device):
            found = _results(operation, case, tensors)
    for name, result in expected.items():
        assert torch.equal(result, found[name]), name


@pytest.mark.parametrize(("dtype", "device"), DEFAULTS, ids=str)
def test_defaults_change_no_model(small: str, dtype: torch.dtype, device: str) -> None:
    model, images = zoo.create_model(small, num_classes=5).eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(images)
        with _defaults(dtype, device):
            found = model(images)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_models_made_in_another_dtype(small: str, dtype: torch.dtype) -> None:
    with _defaults(dtype, "cpu"):
        logits = zoo.create_model(small, num_classes=5).eval()(torch.randn(1, 3, 64, 96))
    assert logits.dtype == dtype
    assert logits.isfinite().all()


@pytest.mark.parametrize("size", [(13, 15), (15, 3), (3, 17), (33, 33)], ids=str)
def test_windows_of_any_size(size: tuple[int, int]) -> None:
    q, k, v = torch.randn(3, 1, 34, 35, 1, 8).unbind()
    bias = torch.randn(1, 2 * size[0] - 1, 2 * size[1] - 1)
    line = explain_backend("neighborhood_attention", q, k, v, size=size)
    assert ("native" in line) == (size == (13, 15)), line
    with use_backend("native"):
        found = neighborhood_attention(q, k, v, size, bias=bias)
    with use_backend("reference"):
        torch.testing.assert_close(found, neighborhood_attention(q, k, v, size, bias=bias), atol=1e-5, rtol=1e-5)


def test_a_window_too_large_never_reaches_cpp() -> None:
    q = torch.randn(1, 34, 34, 1, 8)
    with pytest.raises(ValueError, match="at most 13 x 15, not 15 x 3"):
        import_module("zoo.kernels.neighborhood_attention.native").forward(q, q, q, None, [15, 3], [1, 1], 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_not_finite_goes_through(operation: str, name: str, value: float) -> None:
    """What PyTorch's softmax makes NaN or infinite is so, and nothing else is; also in the gradients."""
    case = _module(operation).AWKWARD[0]
    tensors = case.tensors(1, dtype=torch.float32)
    tensors[name] = tensors[name].clone()
    tensors[name][0, 2, 3, 0, 1] = value
    with use_backend("native"):
        found = _results(operation, case, tensors)
    with use_backend("reference"), sdpa_kernel(SDPBackend.MATH):  # others of PyTorch's lose some
        expected = _results(operation, case, tensors)
    for result, truth in expected.items():
        finite = truth.isfinite()
        assert torch.equal(found[result].isfinite(), finite), result
        torch.testing.assert_close(found[result][finite], truth[finite], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["torchvision", "reference"])
def test_an_offset_that_is_nan_ends_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vision_op = import_module("zoo.kernels.deform_conv.vision_op")
    monkeypatch.setattr(vision_op, "can_run", lambda x: backend == "torchvision")
    x, offset, weight = torch.randn(1, 6, 7, 3), torch.randn(1, 5, 6, 8), torch.randn(2, 3, 2, 2)
    leaves = [t.requires_grad_() for t in (x, offset, weight)]
    finite = deform_conv(*leaves).detach()
    with torch.no_grad():
        offset[0, 2, 3, 1] = float("nan")
        offset[0, 0, 0, :2] = torch.tensor([float("inf"), -1e30])
    out = deform_conv(*leaves)
    out.sum().backward()
    assert out[0, 2, 3].isnan().all()
    assert out.isnan().sum() == 2
    assert weight.grad.isnan().any()
    torch.testing.assert_close(out[0, 3:].detach(), finite[0, 3:])


def test_an_image_with_nan_ends_nothing() -> None:
    images = torch.randn(1, 3, 64, 64)
    images[0, 0, 5, 5] = float("nan")
    for name in SMALLEST.values():
        with torch.no_grad():
            assert zoo.create_model(name, num_classes=5).eval()(images).isnan().all(), name


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float16), torch.zeros(3, device="meta")],
    ids=str,
)
def test_cpp_reads_only_what_it_can(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="C\\+\\+ does not read"):
        native.call("window_attention_forward", wrong)
    with pytest.raises(ValueError, match="with strides"):
        native.call("window_attention_forward", torch.zeros(4, 4).t()[1:])


X = torch.zeros(1, 6, 6, 2, 8)
ATTENTION = {
    "neighborhood_attention": lambda q=X, size=3, **more: zoo.kernels.neighborhood_attention(q, X, X, size, **more),
    "window_attention": lambda q=X, size=3, **more: zoo.kernels.window_attention(q, X, X, size, **more),
    "routing_attention": lambda q=X, size=3, **more: zoo.kernels.routing_attention(
        q, X, X, torch.zeros(1, 4, 2).long(), size, **more
    ),
    "global_attention": lambda q=X, **more: zoo.kernels.global_attention(q, X, X, **more),
    "channel_attention": lambda q=X, **more: zoo.kernels.channel_attention(q, X, X, **more),
}


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", ATTENTION)
def test_arguments_of_other_kinds_are_refused(name: str, backend: str) -> None:
    call = ATTENTION[name]
    wrong = [{"scale": torch.tensor(0.5)}, {"scale": "1"}, {"q": X.numpy()}, {"q": None}, {"q": X.to_sparse()}]
    wrong += [{"q": X.to(torch.float8_e4m3fn)}, {"q": X.to_mkldnn()}]
    if name not in ("global_attention", "channel_attention"):
        wrong += [{"size": size} for size in ("3", None, {3, 5}, 1.5, (1, 2**31), X.numpy(), (1, 2, 3))]
    if name in ("neighborhood_attention", "window_attention", "global_attention"):
        shape = {"neighborhood_attention": (2, 5, 5), "window_attention": (2, 9, 9)}.get(name, (2, 36, 36))
        bias = torch.zeros(shape)
        wrong += [{"bias": other} for other in (bias.to("meta"), bias.bool(), bias.int(), bias[1:], bias.numpy())]
    for arguments in wrong:
        with use_backend(backend), pytest.raises(ValueError, match=r"expected|must agree"):
            call(**arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_routes_of_any_integers(kind: torch.dtype, dtype: torch.dtype) -> None:
    q, routes = torch.randn(1, 6, 6, 2, 8, dtype=dtype), torch.randint(0, 4, (1, 4, 2))
    expected = zoo.kernels.routing_attention(q, q, q, routes, 3)
    torch.testing.assert_close(zoo.kernels.routing_attention(q, q, q, routes.to(kind), 3), expected)
