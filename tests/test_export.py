"""Exported programs: the same logits and maps in other runtimes, at sizes that the export has not seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from typer.testing import CliRunner

import zoo
import zoo.timm_models
from tests import golden
from tests.conftest import SMALLEST
from zoo.cli.main import app
from zoo.config.catalog import load_config
from zoo.export import ExportError, deployment, export
from zoo.export.export import capture, min_side
from zoo.export.runtimes import FORMATS, output_names
from zoo.nn.backbone import Backbone

SMALL = "davit_tiny"
OF_ANY_SIZE = callable(torch.export.Dim.DYNAMIC)
"""Whether PyTorch exports sizes that it does not know; 2.7 gets some models wrong, and we refuse to."""
any_size = pytest.mark.skipif(not OF_ANY_SIZE, reason="refused, see test_an_older_pytorch_exports_fixed_sizes_alone")
UNSEEN = [(1, 192, 128), (2, 113, 147)]
QUICK = {f"stages.{i}.depth": 1 for i in range(4)}


class LogitsAndMaps(nn.Module):
    """Everything that a backbone gives, for one export a family."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        last, maps = self.model.forward_intermediates(images)
        return {"logits": self.model.forward_head(last), **{f"map{i}": level for i, level in enumerate(maps)}}


def worst(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert list(found) == list(expected)
    assert all(found[name].shape == value.shape for name, value in expected.items())
    return max(float((found[name] - value).abs().max() / value.std()) for name, value in expected.items())


@any_size
@pytest.mark.slow
def test_other_runtimes_give_the_same_at_sizes_unseen(each_part: nn.Module, tmp_path: Path) -> None:
    model = LogitsAndMaps(each_part)
    program, least = capture(model, (128, 160))
    assert least["height"] <= 112
    assert not any(str(node.target).startswith(("zoo", "torchvision")) for node in program.graph.nodes)
    path = tmp_path / "model.onnx"
    FORMATS["onnx"].write(program, path, least)
    module, *sessions = program.module(), FORMATS["onnx"].read(path), FORMATS["openvino"].read(path)
    for batch, height, width in [(2, 128, 160), *UNSEEN]:
        images = golden.images(batch, height, width)
        with torch.no_grad():
            expected = model(images)
            assert worst(module(images), expected) < 1e-4
        assert all(worst(session(images), expected) < 3e-5 for session in sessions)


@any_size
def test_exported_files_say_what_they_are(tmp_path: Path) -> None:
    model = zoo.create_model(SMALL, features_only=True, out_indices=(0, 2), **QUICK).eval()
    exported = export(model, tmp_path / "pyramid.pt2", "torch-export", (96, 64))
    assert exported.outputs == ("stride4", "stride16")
    assert exported.least == {"batch": 1, "height": 32, "width": 32}
    assert (exported.channels, exported.size) == (3, (96, 64))
    assert exported.bytes == exported.path.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["pyramid.pt2"]
    found = deployment(model, exported, runs=1)
    assert list(found.differences) == [(133, 128), (96, 64)]
    assert max(found.differences.values()) < 1e-4
    assert min(found.milliseconds) > 0


def test_an_older_pytorch_exports_fixed_sizes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.create_model(SMALL, **QUICK).eval()
    module = sys.modules[capture.__module__]
    monkeypatch.setattr(module, "Dim", SimpleNamespace(DYNAMIC=0) if OF_ANY_SIZE else torch.export.Dim)
    with pytest.raises(ExportError, match="take a newer one, or a fixed size, dynamic=False or --static"):
        capture(model, 64)
    assert capture(model, 64, dynamic=False)[1] == {}


def test_a_fixed_size(tmp_path: Path) -> None:
    model = zoo.create_model("crossformer_tiny", num_classes=0, **QUICK).eval()
    exported = export(model, tmp_path / "model.pt2", "torch-export", (64, 96), dynamic=False)
    assert (exported.outputs, exported.least) == (("pooled",), {})
    assert max(deployment(model, exported, runs=1).differences.values()) < 1e-4


@pytest.mark.slow
def test_ahead_of_time(tmp_path: Path) -> None:
    stage = {"dim": 32, "depth": 1, "branches": ["mlp"]}
    model = zoo.create_model("davit_tiny", num_classes=10, stages=[stage]).eval()
    exported = export(model, tmp_path / "model.pt2", "aot", 64, dynamic=OF_ANY_SIZE)
    assert max(deployment(model, exported, runs=1).differences.values()) < 1e-4


def test_every_variant_knows_its_least_side() -> None:
    with torch.device("meta"):
        sides = {name: min_side(Backbone(load_config(name))) for name in zoo.list_models()}
    assert sides["crossformer_tiny"] == sides["crossformer_pp_huge"] == 224
    assert sides["dinat_isotropic_small"] == 32
    assert {side for name, side in sides.items() if not name.startswith("crossformer")} == {32, 64}


def test_groups_of_crossformer_at_the_least_side() -> None:
    """A map as large as its window is one window, whether that counts as small or not."""
    model = zoo.create_model("crossformer_tiny", num_classes=10).eval()
    images = golden.images(1, 224, 288)
    with torch.no_grad():
        expected = model(images)
        for module in model.modules():
            if hasattr(module, "min_side"):
                module.min_side = min(module.size) + 1
        torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("family", ["dinat", "litv2", "transnext"])
def test_exportable_models_are_traced_to_operators_of_pytorch(family: str) -> None:
    name = SMALLEST[family]
    model = zoo.create_model(name, num_classes=10, exportable=True, **QUICK).eval()
    plain = zoo.create_model(name, num_classes=10, **QUICK).eval()
    plain.load_state_dict(model.state_dict())
    images = golden.images(1, 64, 96)
    with torch.no_grad():
        traced = torch.jit.trace(model, images)
        assert worst({"": traced(images)}, {"": plain(images)}) < 1e-4
    kinds = {node.kind().split("::")[0] for node in traced.inlined_graph.nodes()}
    assert kinds <= {"aten", "prim"}
    model.set_grad_checkpointing()
    model.train()(images).sum().backward()


def test_timm_asks_for_exportable_models_too() -> None:
    for exportable in (True, False):
        model = timm.create_model(f"zoo_{SMALL}", exportable=exportable)
        assert all(stage.exportable == exportable for stage in model.stages)


def test_pooling_is_adaptive_average_pooling() -> None:
    from zoo.nn.mixers.aggregated import pooling

    for length, pooled in [(14, 3), (53, 6), (7, 7), (9, 1)]:
        x = torch.randn(1, 2, length, dtype=torch.float64)
        matrix = pooling(length, pooled, device=x.device).double()
        expected = nn.functional.adaptive_avg_pool1d(x, pooled)
        torch.testing.assert_close(x @ matrix.mT, expected, atol=1e-6, rtol=0)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["export", SMALL, *arguments], env={"COLUMNS": "160"})
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return " ".join(result.output.split())


@pytest.mark.slow
def test_the_command_prints_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = run("-o", "model.onnx", "--size", "64,96", "--num-classes", "10", "--static")
    for fact in ("model.onnx", "MB", "(1, 3, 64, 96)", "logits", "standard deviation at 64 x 96", "latency", "random"):
        assert fact in output


def test_errors_are_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = str(tmp_path / "model.onnx")
    assert "Allowed: aot, onnx, openvino, torch-export" in run("-o", target, "--format", "tflite")
    assert "expected H,W" in run("-o", target, "--size", "big")
    assert "at least 64 a side" in run("-o", target, "--size", "32")
    assert "ends in .pt2" in run("-o", target, "--format", "aot")
    (tmp_path / "file").write_text("text")
    assert "cannot be written" in run("-o", str(tmp_path / "file" / "model.onnx"))
    with pytest.raises(ExportError, match="there is no folder"):
        export(zoo.create_model(SMALL, **QUICK), tmp_path / "none" / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    program, least = capture(zoo.create_model(SMALL, **QUICK), 64, dynamic=False)
    assert output_names(program) == ["logits"]
    with pytest.raises(ExportError, match=r"pip install 'vision-zoo\[export\]'"):
        FORMATS["onnx"].write(program, Path(target), least)
    with pytest.raises(zoo.ConfigError, match="not a model of the zoo"):
        export(nn.Linear(1, 1), target)


def test_nothing_of_other_runtimes_is_imported_before_it_is_needed() -> None:
    names = {"nncf", "onnx", "onnxruntime", "onnxscript", "openvino"}
    code = f"import sys, zoo.cli.main, zoo.export, zoo.vision; assert not {names} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
