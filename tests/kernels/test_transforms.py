"""Derivatives beyond an ordinary backward pass are right, whatever would compute the operation otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.autograd import forward_ad

import zoo
import zoo.kernels
from tests.conftest import cut
from tests.kernels.test_backends import OPERATIONS, _module
from zoo.kernels import explain_backend, use_backend


def _call(operation: str) -> tuple[Callable[..., torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The operation of its floating-point arguments, these, and directions for them."""
    case = _module(operation).AWKWARD[0]
    tensors = case.tensors(1, dtype=torch.float32)
    rest = {name: t for name, t in tensors.items() if not t.is_floating_point()} | case.settings()
    primals = {name: t for name, t in tensors.items() if t.is_floating_point()}

    def call(**given: torch.Tensor) -> torch.Tensor:
        return getattr(zoo.kernels, operation)(**given, **rest)

    return call, primals, {name: torch.randn_like(t) for name, t in primals.items()}


def _difference(call: Callable, primals: dict, directions: dict) -> torch.Tensor:
    """The slope along the directions, in float64."""
    step = 1e-5
    ends = [
        call(**{name: t.double() + sign * step * directions[name] for name, t in primals.items()}) for sign in (1, -1)
    ]
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_forward_mode(operation: str) -> None:
    call, primals, directions = _call(operation)
    expected = _difference(call, primals, directions)
    functional = torch.func.jvp(lambda given: call(**given), (primals,), (directions,))[1]
    with forward_ad.dual_level():
        out = call(**{name: forward_ad.make_dual(t, directions[name]) for name, t in primals.items()})
        dual = forward_ad.unpack_dual(out).tangent
    for found in (functional, dual):
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_of_each_sample(operation: str) -> None:
    call, primals, _ = _call(operation)
    several = torch.stack([primals["q"], 2 * primals["q"]])

    def loss(q: torch.Tensor) -> torch.Tensor:
        return call(**primals | {"q": q}).square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(several)
    for q, one in zip(several, found, strict=True):
        torch.testing.assert_close(one, torch.autograd.functional.jacobian(loss, q), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_of_gradients(operation: str) -> None:
    call, primals, directions = _call(operation)

    def penalty(backend: str, kind: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaves = {name: t.detach().to(kind).requires_grad_() for name, t in primals.items()}
        with use_backend(backend):
            out = call(**leaves)
        slopes = torch.autograd.grad(out.square().sum(), list(leaves.values()), create_graph=True)
        total = sum((slope * directions[name]).sum() for name, slope in zip(leaves, slopes, strict=True))
        return torch.autograd.grad(total, list(leaves.values()))

    exact = penalty("reference", torch.float64)
    for backend in ("native", "reference"):
        for found, expected in zip(penalty(backend, torch.float32), exact, strict=True):
            scale = expected.abs().max().item()
            torch.testing.assert_close(found.double(), expected, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_gradients_of_whole_maps(bias: bool) -> None:
    q, k, v = torch.randn(3, 1, 3, 4, 2, 4, dtype=torch.float64).requires_grad_().unbind()
    table = [torch.randn(2, 12, 12, dtype=torch.float64, requires_grad=True)] * bias
    assert torch.autograd.gradgradcheck(zoo.kernels.global_attention, (q, k, v, *table))


def test_gradients_of_gradients_of_a_deformable_convolution() -> None:
    tensors = [torch.randn(1, 5, 6, 2), torch.rand(1, 4, 5, 8), torch.randn(3, 2, 2, 2), torch.randn(3)]
    tensors = [t.double().requires_grad_() for t in tensors]
    assert torch.autograd.gradgradcheck(zoo.kernels.deform_conv, tensors)


def test_a_backward_pass_may_be_repeated_but_only_if_it_was_said() -> None:
    q = torch.randn(1, 3, 4, 2, 4, requires_grad=True)
    out = zoo.kernels.global_attention(q, q, q).square().sum()
    first, second = (torch.autograd.grad(out, q, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    torch.autograd.grad(out, q)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, q)


def test_the_explanation_says_so() -> None:
    lines = []

    def note(q: torch.Tensor) -> torch.Tensor:
        lines.append(explain_backend("window_attention", q))
        return q

    torch.func.vmap(note)(torch.zeros(2, 1, 4, 4, 1, 8))
    assert lines[0].endswith("reference, torch.func and forward-mode differentiation need PyTorch's own operators")


def test_models_in_forward_mode(small: str) -> None:
    """Along the image; weights twice as large, so that attention matters."""
    model = zoo.create_model(small, num_classes=10).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2 if parameter.ndim > 1 else 1)
    images, direction = torch.randn(1, 3, 64, 96), torch.randn(1, 3, 64, 96)
    found = torch.func.jvp(model, (images,), (direction,))[1]
    exact = model.double()
    with torch.no_grad():
        ends = [exact(images.double() + sign * 1e-6 * direction) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / 2e-6
    assert (found - slope).norm() / slope.norm() < 1e-3


def test_gradients_of_gradients_of_models(small: str) -> None:
    """The Hessian times a direction along the image, as a gradient penalty needs it."""
    model = zoo.create_model(small, num_classes=10, **cut(small)).eval()
    images, direction = torch.randn(1, 3, 64, 96), torch.randn(1, 3, 64, 96)

    def slope(model: torch.nn.Module, images: torch.Tensor, again: bool = False) -> torch.Tensor:
        images = images.requires_grad_()
        (gradient,) = torch.autograd.grad(model(images).square().sum(), images, create_graph=again)
        return torch.autograd.grad((gradient * direction).sum(), images)[0] if again else gradient

    found = slope(model, images.clone(), again=True)
    exact = model.double()
    ends = [slope(exact, images.double() + sign * 1e-6 * direction) for sign in (1, -1)]
    expected = (ends[0] - ends[1]) / 2e-6
    assert (found - expected).norm() / expected.norm() < 1e-3
