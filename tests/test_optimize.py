"""`zoo.optimize`: the same outputs from packed layers, whatever is done with the copy."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

import zoo
from tests import golden
from zoo.errors import ConfigError
from zoo.kernels import native
from zoo.models import optimize, tactics
from zoo.nn.ffns import Mlp
from zoo.nn.layers.packed import PackedConv, PackedLayerNorm
from zoo.nn.layers.per_weights import has_table
from zoo.nn.mixers.routing import RoutingAttention

TOLERANCE = 1e-5
SIZES = [(2, 64, 96), (1, 97, 211)]


@pytest.fixture(autouse=True)
def _always_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is faster on this machine: every layer that can be packed is."""
    monkeypatch.setattr(tactics.Tactics, "is_faster", lambda *_: True)
    monkeypatch.setattr(tactics.Tactics, "images_at_once", lambda *_: None)


def difference(model: nn.Module, other: nn.Module, size: tuple[int, int, int]) -> float:
    images = golden.images(*size)
    with torch.inference_mode():
        expected = model(images)
        return float((other(images) - expected).abs().max() / expected.std())


def quick(name: str = "davit_tiny", **settings: object) -> nn.Module:
    return zoo.create_model(name, **{f"stages.{i}.depth": 1 for i in range(4)}, **settings).eval()


RECORDS = {golden.Golden(name).info["variant"]: name for name in golden.NAMES}


def test_every_family_gives_the_same(small: str) -> None:
    checkpoint = golden.Golden(RECORDS[small]).state_dict() if small in RECORDS else None
    model = zoo.create_model(small, checkpoint=checkpoint).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimized = zoo.optimize(model)
    kinds = {type(module) for module in optimized.modules()}
    assert {PackedConv, PackedLayerNorm} <= kinds
    tables = {layer for module in optimized.modules() if has_table(module) for layer in module.modules()}
    assert all(module in tables for module in optimized.modules() if type(module) is nn.Linear)
    # Of regions with nearly equal scores, another rounding chooses another.
    routed = any(isinstance(module, RoutingAttention) for module in model.modules())
    exact = copy.deepcopy(model).double()
    for size in SIZES:
        images = golden.images(*size)
        with torch.inference_mode():
            expected = exact(images.double())
            errors = [float((m(images) - expected).abs().max() / expected.std()) for m in (model, optimized)]
        assert errors[1] < (1e-2 if routed else max(TOLERANCE, 2 * errors[0]))  # LITv2's offsets magnify rounding
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("settings", [{"features_only": True}, {"in_chans": 4}, {"num_classes": 0}])
def test_any_form_of_a_model(settings: dict[str, object]) -> None:
    model = quick(**settings)
    images = torch.randn(2, settings.get("in_chans", 3), 70, 90)
    with torch.inference_mode():
        found, expected = zoo.optimize(model)(images), model(images)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_copy_says_what_was_done(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        optimized = zoo.optimize(quick())
    assert optimized.optimized == {"Conv2d packed": 12, "LayerNorm packed": 13, "Linear packed": 17}
    assert "17 Linear packed" in caplog.text


def test_threads_processes_copies_and_pickles() -> None:
    model = zoo.optimize(quick())
    images = golden.images(1, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        with ThreadPoolExecutor(4) as pool:
            assert all(torch.equal(y, expected) for y in pool.map(lambda _: _infer(model, images), range(8)))
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(images), expected)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_infer_alone, (model,)) == expected.sum().item()


def _infer(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(images)


def _infer_alone(model: nn.Module) -> float:
    torch.set_num_threads(1)
    return _infer(model, golden.images(1, 64, 64)).sum().item()


def test_hooks_are_kept_and_new_ones_see_the_layers() -> None:
    model, seen = quick(), []
    name = next(name for name, module in model.named_modules() if isinstance(module, Mlp))
    model.get_submodule(name).fc1.register_forward_hook(lambda *_: seen.append("before"))
    optimized = zoo.optimize(model)
    seen.clear()  # of the example
    optimized.get_submodule(name).fc2.register_forward_hook(lambda *_: seen.append("after"))
    assert difference(model, optimized, (1, 64, 64)) < TOLERANCE
    assert seen.count("before") == 2
    assert seen.count("after") == 1
    assert "Linear left as it is, it is hooked" in optimized.optimized


def test_exported_compiled_and_with_gradients() -> None:
    model = quick()
    optimized, images = zoo.optimize(model), golden.images(1, 64, 64)
    expected = model(images)
    program = torch.export.export(optimized, (images,)).module()
    compiled = torch.compile(optimized, fullgraph=True, backend="eager")
    for other in (program, compiled):
        torch.testing.assert_close(other(images), expected, atol=1e-5, rtol=1e-4)
    assert not optimized(images).requires_grad  # the kernels run without inference mode too
    images.requires_grad_()
    gradients = [torch.autograd.grad(m(images).square().sum(), images)[0] for m in (optimized, model)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of bfloat16 on any processor; where there are no products of it, PyTorch computes them."""
    monkeypatch.setattr(optimize, "has_bfloat16", lambda: True)


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_of_every_family(small: str) -> None:
    """The logits against float32; BiFormer may choose other regions, LITv2's offsets magnify every difference."""
    checkpoint = golden.Golden(RECORDS[small]).state_dict() if small in RECORDS else None
    model = zoo.create_model(small, checkpoint=checkpoint).eval()
    optimized = zoo.optimize(model, dtype=torch.bfloat16)
    assert optimized.optimized["Linear packed in bfloat16"]
    for size in SIZES:
        images = golden.images(*size)
        with torch.inference_mode():
            found, expected = optimized(images), model(images)
        assert found.dtype == torch.float32
        assert 0 < (found - expected).std() / expected.std() < 0.1


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_is_copied_exported_and_cast() -> None:
    model = zoo.optimize(quick(), dtype=torch.bfloat16)
    images = golden.images(1, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(images), expected)
        for other in (torch.export.export(model, (images,)).module(), copy.deepcopy(model).float()):
            torch.testing.assert_close(other(images), expected, atol=0.05, rtol=0.05)


def test_bfloat16_needs_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "has_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match="does not multiply bfloat16 numbers"):
        zoo.optimize(quick(), dtype=torch.bfloat16)


def test_without_a_compiler_norms_are_folded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(optimize, "why_not", lambda: "no C++ compiler was found")
    model = zoo.create_model("maxvit_rmlp_pico_rw_256").eval()
    optimized = zoo.optimize(model)
    assert "only batch norms are folded, because no C++ compiler was found" in caplog.text
    assert not any(isinstance(module, (nn.BatchNorm2d, PackedConv)) for module in optimized.stages.modules())
    assert difference(model, optimized, (1, 64, 64)) < TOLERANCE


def test_a_pickle_works_where_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quick()
    optimized = zoo.optimize(model)
    monkeypatch.setattr(native, "_library", lambda: (None, "no C++ compiler was found"))
    assert difference(model, pickle.loads(pickle.dumps(optimized)), (1, 64, 64)) < TOLERANCE


def test_what_it_cannot_serve_is_refused() -> None:
    model = quick()
    for wrong, settings, match in (
        (model, {"dtype": torch.float16}, "expected one of torch.float32, torch.bfloat16"),
        (copy.deepcopy(model).half(), {}, "torch.float16 on cpu"),
        (copy.deepcopy(model).to("meta"), {}, "on meta"),
        (nn.Linear(3, 4), {}, "model of the zoo"),
        (model, {"example": torch.zeros(3, 64, 64)}, r"\(3, 64, 64\), expected images \(B, 3, H, W\)"),
        (model, {"example": torch.zeros(1, 4, 64, 64)}, r"expected images \(B, 3, H, W\)"),
        (model, {"example": torch.zeros(0, 3, 64, 64)}, "expected images"),
        (model, {"example": torch.zeros(1, 3, 64, 64).double()}, "torch.float64 on cpu, expected"),
    ):
        with pytest.raises(ConfigError, match=match):
            zoo.optimize(wrong, **settings)


def test_measurements_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    kept = tmp_path / "kept.json"
    monkeypatch.setattr(tactics, "_path", lambda: kept)
    monkeypatch.setattr(tactics, "_gain", lambda *_: 1.5)
    model = quick()
    assert zoo.optimize(model).optimized["Linear packed"] == 17
    monkeypatch.setattr(tactics, "_gain", lambda *_: pytest.fail("measured again"))
    assert zoo.optimize(model).optimized["Linear packed"] == 17
    kept.write_text("half a fi")
    monkeypatch.setattr(tactics, "_gain", lambda *_: 0.5)
    assert zoo.optimize(model).optimized["Linear left as it is, which is faster here"] == 17
    monkeypatch.setattr(tactics, "_path", lambda: None)
    assert zoo.optimize(model).optimized["Linear left as it is, which is faster here"] == 17


def test_measuring_takes_real_time() -> None:
    layer = nn.Linear(16, 16)
    with torch.inference_mode():
        assert 0 < tactics._gain(PackedConv(layer), layer, (torch.randn(1, 4, 4, 16),)) < 100


def test_many_images_pay_for_it() -> None:
    model = quick()
    assert optimize.optimize_for(optimize.WORTHWHILE - 1, model) is model
    assert isinstance(optimize.optimize_for(optimize.WORTHWHILE, model).stages[0].blocks[0].mlp.fn.fc1, PackedConv)
    assert optimize.optimize_for(1000, model.double()) is model


def test_a_batch_is_run_in_parts_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tactics.Tactics, "images_at_once", lambda self, stage, x: 2)
    model = quick()
    optimized, images = zoo.optimize(model), golden.images(5, 64, 64)
    assert [stage.images_at_once for stage in optimized.stages] == [2] * 4
    assert [stage.images_at_once for stage in model.stages] == [None] * 4
    seen: list[int] = []
    run = optimized.stages[0].blocks[0].forward
    monkeypatch.setattr(optimized.stages[0].blocks[0], "forward", lambda x: [seen.append(len(x)), run(x)][1])
    with torch.inference_mode():
        found = optimized(images)
        torch.testing.assert_close(found, model(images), atol=1e-5, rtol=1e-4)
    assert seen == [2, 2, 1]
    optimized.stages[0].embed.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    with torch.inference_mode():
        torch.testing.assert_close(optimized(images), found, atol=1e-5, rtol=1e-4)
    assert seen[3:] == [5, 5]  # who looks at a layer sees whole batches


def test_parts_are_measured_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(tactics, "_path", lambda: tmp_path / "kept.json")
    stage, x = quick().stages[1], torch.randn(4, 96, 16, 16)
    with torch.inference_mode():
        measured = tactics.Tactics()
        best = measured.images_at_once(stage, x)
        assert best in (None, *tactics.PARTS)
        measured.keep()
        monkeypatch.setattr(tactics, "_best_part", lambda *_: pytest.fail("measured again"))
        assert tactics.Tactics().images_at_once(stage, x) == best
