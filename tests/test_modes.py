"""Compilation, mixed precision and memory formats, for a small variant of every family."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
from torch._dynamo.utils import counters
from torch.torch_version import TorchVersion

import zoo
from tests import golden
from zoo.nn.mixers.routing import RoutingAttention

IMAGES = golden.images(2, 64, 96)
ODD = golden.images(2, 97, 211)


@pytest.fixture
def model(small: str) -> torch.nn.Module:
    return zoo.create_model(small, num_classes=10).eval()


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return bool((a - b).abs().max() < tolerance * b.std())


@pytest.mark.slow
def test_compiles_as_one_graph(each_part: torch.nn.Module) -> None:
    torch.compiler.reset()
    with torch.inference_mode():
        assert close(torch.compile(each_part, fullgraph=True, dynamic=False)(ODD[:1]), each_part(ODD[:1]))


@pytest.mark.slow
def test_compiled_training_gives_the_same_gradients(each_part: torch.nn.Module) -> None:
    torch.compiler.reset()
    gradients = []
    for run in (each_part, torch.compile(each_part, fullgraph=True, dynamic=False, backend="aot_eager")):
        each_part.zero_grad()
        run(IMAGES).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in each_part.parameters()]))
    assert close(gradients[1], gradients[0], 1e-2)


@pytest.mark.slow
def test_changing_the_size_does_not_compile_for_ever(each_part: torch.nn.Module) -> None:
    """One graph takes any size, but for a few rules that depend on it, such as whether a window needs padding."""
    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(each_part, fullgraph=True, dynamic=True, backend="eager")
    seen, routed = [], any(isinstance(module, RoutingAttention) for module in each_part.modules())
    for size in [(112, 128), (125, 166), (151, 149), (144, 176)]:
        images = golden.images(1, *size)
        with torch.inference_mode():
            # Of regions with nearly equal scores, another rounding chooses another.
            assert close(compiled(images), each_part(images), 1e-2 if routed else 1e-4)
        seen.append(counters["stats"]["unique_graphs"])
    assert seen[-1] <= (3 if TorchVersion(torch.__version__) >= "2.8" else 4)


def test_autocast(model: torch.nn.Module) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(IMAGES)
    assert out.dtype == torch.bfloat16
    with torch.no_grad():
        assert close(out.float(), model(IMAGES), 0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.train()(IMAGES).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(model: torch.nn.Module, dtype: torch.dtype) -> None:
    with torch.no_grad():
        expected = model(IMAGES)
        out = copy.deepcopy(model).to(dtype)(IMAGES.to(dtype))
    assert out.dtype == dtype
    assert close(out.float(), expected, 1e-4 if dtype == torch.float64 else 0.3)


def test_channels_last_images_and_model(model: torch.nn.Module) -> None:
    with torch.no_grad():
        expected = model(IMAGES)
        assert close(model(IMAGES.contiguous(memory_format=torch.channels_last)), expected)
        assert close(model.to(memory_format=torch.channels_last)(IMAGES), expected)


def test_maps_given_to_users_are_channels_last_views(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for level in model.forward_intermediates(IMAGES, intermediates_only=True):
            assert level.is_contiguous(memory_format=torch.channels_last)


def test_copies_and_pickles(model: torch.nn.Module) -> None:
    with torch.no_grad():
        expected = model(IMAGES)
        assert torch.equal(copy.deepcopy(model)(IMAGES), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(IMAGES), expected)
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    model.load_state_dict(torch.load(buffer, weights_only=True))
    assert model.state_dict().keys() == safetensors.torch.load(safetensors.torch.save(model.state_dict())).keys()


def test_runs_twice_to_the_same_bits(model: torch.nn.Module) -> None:
    with torch.no_grad():
        assert torch.equal(model(ODD), model(ODD))


def test_wrong_inputs_say_what_was_expected(model: torch.nn.Module) -> None:
    for wrong in (torch.zeros(3, 32, 32), torch.zeros(1, 4, 32, 32), torch.zeros(1, 32, 32, 3)):
        with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
            model(wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_gives_what_the_cpu_gives(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # convolutions use it unless told otherwise
    with torch.no_grad():
        expected = model(ODD)
        assert close(model.cuda()(ODD.cuda()).cpu(), expected, 1e-3)
