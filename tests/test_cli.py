"""The `zoo` command as a person uses it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image
from typer.testing import CliRunner

import zoo
from zoo.cli.main import app

PHOTO = str(get_sample_data("grace_hopper.jpg", asfileobj=False))
SMALL = "maxvit_rmlp_pico_rw_256"


def run(*arguments: str, fails: bool = False) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})
    assert (result.exit_code != 0) == fails, result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import sys; import zoo.cli.main; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "zoo", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


def test_import_of_the_package_is_light() -> None:
    code = "import sys, zoo; assert not {'torch', 'timm', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_list() -> None:
    output = run("list")
    assert all(name in output for name in zoo.list_models())
    assert "davit" not in run("list", "maxvit_*_224")
    assert "maxvit" not in run("list", "--family", "davit")
    assert "no model matches" in run("list", "resnet*", fails=True)


def test_info() -> None:
    output = run("info", "davit_tiny")
    for fact in ("28.36 M", "4.5", "82.8", "MIT", "Apache-2.0", "arxiv.org/abs/2204.03645", "crop_pct 0.95"):
        assert fact in output
    assert "did you mean 'davit_tiny'" in run("info", "davit_tinyy", fails=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(zoo.create_model(SMALL).state_dict(), path)
    return str(path)


def test_predict_prints_imagenet_names(checkpoint: str, tmp_path: Path) -> None:
    from timm.data import ImageNetInfo

    output = run("predict", PHOTO, "--model", SMALL, "--checkpoint", checkpoint, "--topk", "3")
    names = ImageNetInfo("imagenet-1k").label_descriptions()
    assert sum(any(name in line for name in names) for line in output.splitlines() if "%" in line) == 3
    assert "grace_hopper.jpg" in output


def test_predict_with_other_classes(tmp_path: Path) -> None:
    path = tmp_path / "ten.pth"
    torch.save(zoo.create_model(SMALL, num_classes=10).state_dict(), path)
    assert "class " in run("predict", PHOTO, "-m", SMALL, "-c", str(path), "--topk", "20")


def test_predict_refuses_made_up_labels() -> None:
    output = run("predict", PHOTO, fails=True)
    assert "made up" in output
    assert "--checkpoint" in output
    assert "zoo info davit_tiny" in output


def test_predict_reports_unreadable_pictures_and_goes_on(checkpoint: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    missing = str(tmp_path / "missing.jpg")
    output = run("predict", str(broken), PHOTO, missing, "-m", SMALL, "-c", checkpoint, fails=True)
    assert "grace_hopper.jpg" in output
    assert "cannot be read as a picture" in output
    assert "there is no such file" in output


def test_predict_reads_a_folder(checkpoint: str, tmp_path: Path) -> None:
    """One row a picture, sorted, hidden ones passed over; what is no picture is named, and the others go on."""
    names = ["10.png", "2.JPG", "a/1.png", "b/c/3.webp"]
    for name in [*names, ".hidden.png", ".ipynb_checkpoints/1.png", "__MACOSX/2.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    options = "-m", SMALL, "-c", checkpoint, "--topk", "1"
    output = run("predict", str(tmp_path), *options)
    assert [line.split("│")[1].strip() for line in output.splitlines() if "%" in line] == names
    assert "1 other file" in " ".join(output.split())
    (tmp_path / "a" / "broken.png").write_text("no picture")
    output = run("predict", str(tmp_path), PHOTO, *options, fails=True)
    assert [line.split("│")[1].strip() for line in output.splitlines() if "%" in line] == [*names, "grace_hopper.jpg"]
    assert "broken.png: cannot be read as a picture" in output
    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in run("predict", str(tmp_path / "empty"), *options, fails=True)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P", "I;16"])
def test_features_draws_pictures_of_any_kind(tmp_path: Path, mode: str) -> None:
    image = Image.open(PHOTO).resize((211, 97))
    source, target = tmp_path / "photo.tiff", tmp_path / "new folder" / "pyramid.png"
    (image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)).save(source)
    output = run("features", str(source), "--model", SMALL, "-o", str(target))
    assert "weights are random" in output
    with Image.open(target) as picture:
        colours = picture.convert("RGB").resize((64, 16)).getcolors(1024)
    assert len(colours) > 50


def test_features_of_a_turned_photo(tmp_path: Path) -> None:
    from zoo.vision import read_image

    path = tmp_path / "turned.jpg"
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    assert read_image(path).size == (20, 40)


def test_features_of_one_colour(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    output = run("features", str(tmp_path / "red.png"), "-m", SMALL, "-o", str(tmp_path / "out.png"))
    assert "wrote" in output
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_errors_are_short() -> None:
    assert "no such file" in run("features", "none.jpg", fails=True)
    assert "cannot be read" in run("info", "none.yaml", fails=True)


def test_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.vision.speed.SECONDS", 0.01)
    written = tmp_path / "speed.json"
    text = run("benchmark", SMALL, "-b", "2", "--img-size", "64", "--train", "-o", str(written))
    assert "64 x 64" in text
    (row,) = json.loads(written.read_text())
    assert row["batch"] == 2
    assert row["forward"] > row["training"] > 0
    assert "expected one of no, bf16, fp16" in run("benchmark", SMALL, "--amp", "half", fails=True)
    assert "did you mean" in run("benchmark", "davit_tinny", fails=True)
