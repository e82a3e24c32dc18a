"""Derivatives beyond an ordinary backward pass are right, whatever would compute the operation otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

import zoo
import zoo.kernels
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
        with use_backend(backend), sdpa_kernel(SDPBackend.MATH):
            out = call(**leaves)
        slopes = torch.autograd.grad(out.square().sum(), list(leaves.values()), create_graph=True)
        total = sum((slope * directions[name]).sum() for name, slope in zip(leaves, slopes, strict=True))
        return torch.autograd.grad(total, list(leaves.values()))

    for found, expected in zip(penalty("native", torch.float32), penalty("reference", torch.float64), strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(found.double(), expected, atol=1e-5 * scale, rtol=1e-4)


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
