"""OpenVINO's files: the same outputs in float32, close ones in int8, and nothing lost or half written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import zoo
from tests import golden
from tests.test_export import UNSEEN, LogitsAndMaps, any_size
from zoo.cli.main import app
from zoo.export import ExportError, agreement, deployment, export
from zoo.export.export import capture
from zoo.export.runtimes import FORMATS
from zoo.files import move_together
from zoo.vision import read_inputs

pytestmark = pytest.mark.usefixtures("one_thread")
STAGES = [{"dim": 32, "depth": 1}]
SIZE = (64, 96)


@pytest.fixture
def model() -> nn.Module:
    return zoo.create_model("davit_tiny", num_classes=10, stages=STAGES).eval()


def images(count: int) -> list[torch.Tensor]:
    return list(golden.images(count, *SIZE).split(1))


def save_pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@any_size
@pytest.mark.slow
def test_every_part_in_int8_at_sizes_unseen(each_part: nn.Module, tmp_path: Path) -> None:
    model = LogitsAndMaps(each_part)
    program, least = capture(model, (128, 160))
    FORMATS["openvino"].write(program, tmp_path / "model.xml", least, [golden.images(2, 128, 160)])
    run = FORMATS["openvino"].read(tmp_path / "model.xml")
    for batch, height, width in [(2, 128, 160), *UNSEEN]:
        inputs = golden.images(batch, height, width)
        with torch.no_grad():
            expected = model(inputs)
        found = run(inputs)
        assert found["logits"].shape == expected.pop("logits").shape  # of random weights small, so that they say little
        for name, value in expected.items():
            assert 1e-4 < float((found[name] - value).norm() / value.norm()) < 0.1


@any_size
def test_a_file_and_its_weights(model: nn.Module, tmp_path: Path) -> None:
    exported = export(model, tmp_path / "model.xml", "openvino", SIZE)
    assert names(tmp_path) == ["model.bin", "model.xml"]
    assert exported.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert exported.least == {"batch": 1, "height": 8, "width": 8}
    found = deployment(model, exported, runs=1)
    assert max(found.differences.values()) < 3e-5
    assert min(found.milliseconds) > 0
    assert agreement(model, exported, images(3)).top1 == 1
    import openvino

    network = openvino.Core().read_model(exported.path)
    assert network.get_rt_info(["framework", "least_height"]).astype(int) == 8
    compiled = openvino.Core().compile_model(network, "CPU")
    with pytest.raises(RuntimeError, match=r"8\.\."):
        compiled([np.zeros((1, 3, 4, 8), np.float32)])


def test_int8(model: nn.Module, tmp_path: Path) -> None:
    whole = export(model, tmp_path / "float32.xml", "openvino", SIZE, dynamic=False)
    small = export(model, tmp_path / "int8.xml", "openvino", SIZE, dynamic=False, calibration=images(4))
    assert small.outputs == whole.outputs
    sizes = [(tmp_path / f"{name}.bin").stat().st_size for name in ("int8", "float32")]
    assert sizes[0] < sizes[1] / 2
    other = list(golden.images(8, *SIZE)[4:].split(1))
    exact, found = agreement(model, whole, other), agreement(model, small, other)
    assert (exact.images, found.images) == (4, 4)
    assert exact.error < 1e-5
    assert 1e-4 < found.error < 0.1
    assert found.top1 in (0, 0.25, 0.5, 0.75, 1)


def test_agreement_is_what_it_says(model: nn.Module, tmp_path: Path) -> None:
    exported = export(model, tmp_path / "model.pt2", "torch-export", SIZE, dynamic=False)
    inputs = images(4)
    with torch.no_grad():
        logits = model(torch.cat(inputs))
        model.get_classifier().weight.mul_(0)
        model.get_classifier().bias.zero_()[3] = 2
    found = agreement(model, exported, inputs)
    expected = torch.zeros_like(logits)
    expected[:, 3] = 2
    assert found.error == pytest.approx(float((logits - expected).norm() / expected.norm()), rel=1e-4)
    assert found.top1 == float((logits.argmax(1) == 3).float().mean())
    model.reset_classifier(0)
    exported = export(model, tmp_path / "model.pt2", "torch-export", SIZE, dynamic=False)
    assert agreement(model, exported, inputs).top1 is None


def test_what_cannot_be_written_is_said_before(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(match: str, name: str = "model.xml", format: str = "openvino", **options: object) -> None:
        with pytest.raises(ExportError, match=match):
            export(model, tmp_path / name, format, SIZE, dynamic=False, **options)

    refuse(r"ends in \.xml", "model.bin")
    refuse("make int8 files of format openvino, but the format is onnx", "model.onnx", "onnx", calibration=images(1))
    refuse("no images, expected at least one", calibration=[])
    wrong = [*images(1), torch.zeros(1, 3, 64, 64)]
    refuse(r"calibration\[1\]: shape \(1, 3, 64, 64\), expected \(1, 3, 64, 96\)", calibration=wrong)
    refuse(r"calibration\[0\]: shape \(3, 64, 96\)", calibration=[torch.zeros(3, 64, 96)])
    for package in ("nncf", "openvino"):
        monkeypatch.setitem(sys.modules, package, None)
        refuse(rf"{package}.*pip install 'vision-zoo\[openvino\]'", calibration=images(1))
    (tmp_path / "model.bin").write_text("weights of something else")
    refuse("exists without model.xml")
    assert names(tmp_path) == ["model.bin"]


@pytest.mark.parametrize("failing", range(1, 5))
def test_files_are_replaced_together(failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = tmp_path / "new"
    new.mkdir()
    for folder, text in ((tmp_path, "old"), (new, "new")):
        for name in ("model.bin", "model.xml"):
            (folder / name).write_text(text)
    calls = 0

    def replace(source: Path, target: Path, replace=os.replace) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError("the disk is gone")
        replace(source, target)
        alike = len({path.read_text() for path in tmp_path.glob("model.*")}) == 1
        assert alike or not (tmp_path / "model.xml").exists()

    monkeypatch.setattr(os, "replace", replace)
    files = [new / "model.bin", new / "model.xml"]
    with pytest.raises(OSError, match="the disk is gone"):
        move_together(files, tmp_path)
    assert [(tmp_path / name).read_text() for name in ("model.bin", "model.xml")] == ["old", "old"]
    assert names(tmp_path) == ["model.bin", "model.xml", "new"]


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model.bin").mkdir()
    (tmp_path / "new").mkdir()
    files = [tmp_path / "new" / name for name in ("model.bin", "model.xml")]
    for file in files:
        file.write_text("new")
    with pytest.raises(IsADirectoryError):
        move_together(files, tmp_path)
    assert names(tmp_path) == ["model.bin", "new"]


def test_pictures_become_inputs_as_for_labels(model: nn.Module, tmp_path: Path, caplog) -> None:
    folder = save_pictures(tmp_path / "pictures", 5)
    inputs = read_inputs(model, folder)
    assert [tuple(image.shape) for image in inputs] == [(1, 3, 224, 224)] * 5
    with torch.inference_mode():
        probability = float(model(inputs[2]).softmax(1).max())
    picture = Image.open(folder / "2.png")
    assert zoo.vision.predict(model, [picture], 1)[0][0].probability == pytest.approx(probability)
    assert torch.equal(torch.cat(read_inputs(model, folder, most=2)), torch.cat([inputs[0], inputs[2]]))
    (folder / "3.png").write_text("text")
    assert [tuple(image.shape) for image in read_inputs(model, folder, SIZE)] == [(1, 3, *SIZE)] * 4
    assert "3.png: cannot be read as a picture (not a picture); it is passed over" in caplog.text


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["export", *arguments], env={"COLUMNS": "160"})
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return " ".join(result.output.split())


def test_the_command_says_how_close_int8_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text("extends: davit_tiny\nstages: [{dim: 32, depth: 1}]\n")
    save_pictures(tmp_path / "pictures", 5)
    common = ("tiny.yaml", "-o", "model.xml", "--format", "openvino", "--size", "64", "--static", "--calibrate")
    text = run(*common, "pictures")
    for fact in ("openvino, int8", "model.xml", "2 pictures held out of the calibration", "same top-1", "latency"):
        assert fact in text
    assert "The weights are random, so that equal labels mean nothing" in text
    for path in Path("pictures").iterdir():
        if path.name != "0.png":
            path.write_text("text")
    assert "pictures: holds one picture, expected two or more" in run(*common, "pictures")
    Path("pictures/0.png").unlink()
    assert "holds no pictures that can be read" in run(*common, "pictures")
    assert "tiny.yaml: is not a folder" in run(*common, "tiny.yaml")
