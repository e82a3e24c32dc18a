"""The `zoo` command as a person uses it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from matplotlib.cbook import get_sample_data
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import zoo
from tests.training.conftest import TINY
from zoo.cli.main import app
from zoo.files import write_json, write_text
from zoo.text import printable
from zoo.training.recipe import load_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import fuzz_values

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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> fuzz_values.Place:
    """A folder with a tiny trained checkpoint, pictures and files that are nothing."""
    return fuzz_values.Place(tmp_path_factory.mktemp("place"))


COMMANDS = {
    "list": ("", "resnet*"),
    "info": ("davit_tiny", "davit_tinyy"),
    "predict": ("{red} -c {trained} --topk 1", "{text} -c {trained}"),
    "features": ("{red} -m {trained} -o {new}.png", "{red} -m {trained} -o {new}.txt"),
    "explain": ("{red} -m {trained} -o {new}.png --size 32", "{red} -m {trained} --layer none -o {new}.png"),
    "export": ("{trained} --static --format torch-export -o {new}.pt2", "{trained} --format tflite -o {new}.pt2"),
    "benchmark": ("{trained} -b 1 --img-size 16", "{trained} --amp half"),
    "train": ("{recipe} -o {new}", "{recipe} --set lr=fast -o {new}"),
    "validate": ("--data {images} -c {trained} --workers 0", "--data {folder} -c {trained}"),
    "weights list": ("davit_*", "resnet*"),
    "weights fetch": (None, "davit_tiny.official_in1k"),
    "weights verify": ("davit_*", "resnet*"),
    "weights convert": ("{small} {new}.safetensors -m " + SMALL, "{junk} {new}.safetensors -m " + SMALL),
    "weights diff": ("{small} {small}", "{small} {junk}"),
    "weights import": (None, "{folder}"),
    "weights publish": (SMALL + " local-dir:{new} -c {small}", SMALL + " somewhere -c {small}"),
}
"""Arguments that succeed, unless another test has them, and arguments that do not."""


def test_every_command_has_its_exit_codes_here() -> None:
    def names(group: Any, before: str = "") -> set[str]:
        found = set()
        for name, command in group.commands.items():
            found |= names(command, f"{name} ") if hasattr(command, "commands") else {before + name}
        return found

    assert names(typer.main.get_command(app)) == COMMANDS.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_exit_codes(
    command: str, place: fuzz_values.Place, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.vision.speed.SECONDS", 0.01)
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    recipe = {**TINY, "data": str(place.images), "epochs": 1, "batch_size": 8, "workers": 0}
    (tmp_path / "recipe.yaml").write_text(load_recipe("digits", recipe).to_yaml())
    files = {"red": "red.png", "text": "text.txt", "junk": "junk.pth", "trained": "trained.safetensors"}
    files = {key: place.root / name for key, name in {**files, "images": "images", "folder": "folder"}.items()}
    files |= {"small": Path(checkpoint), "recipe": tmp_path / "recipe.yaml", "new": tmp_path / "new"}

    def status(arguments: str) -> int:
        done = CliRunner().invoke(app, command.split() + arguments.format(**files).split())
        assert done.exception is None or isinstance(done.exception, SystemExit), done.output
        assert not {"Traceback", "fault of zoo"} & set(done.output.split("\n")), done.output
        return done.exit_code

    right, wrong = COMMANDS[command]
    assert right is None or status(right) == 0
    assert status(wrong) == 1
    assert status("--no-such-option") == 2

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zoo.cli.output.TyperGroup.invoke", stopped)
    assert status("") == 130


def test_an_error_that_nobody_expected_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("why?")

    monkeypatch.setattr("zoo.cli.output.TyperGroup.invoke", broken)
    text = run("list", fails=True)
    assert "AssertionError: why?" in text
    assert "report" in text
    monkeypatch.setenv("ZOO_TRACEBACK", "1")
    assert isinstance(CliRunner().invoke(app, ["list"]).exception, AssertionError)


def zoo_process(arguments: str, **options: Any) -> subprocess.CompletedProcess:
    command = f"{shlex.quote(sys.executable)} -m zoo {arguments}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_that_cannot_be_written() -> None:
    full = zoo_process("list > /dev/full")
    assert full.returncode == 1
    assert full.stderr == "error: [Errno 28] No space left on device\n"
    assert zoo_process("list >&-").returncode == 0
    cut = zoo_process("list | head -1")
    assert cut.returncode == 0
    assert not cut.stderr


def test_tables_are_as_wide_as_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe nothing is cut or wrapped; in a narrow terminal no word is."""
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = CliRunner().invoke(app, ["list"]).output.splitlines()
    assert all(any(line.split()[:1] == [name] and line.split()[-1:] for line in lines) for name in zoo.list_models())
    assert len({len(line) for line in lines}) == 1
    narrow = CliRunner().invoke(app, ["list", "davit_*"], env={"COLUMNS": "30"}).output
    for word in ("davit_small", "49.7", "Apache-2.0", "weights", "84.2"):
        assert word in narrow


def test_control_characters_of_names_stay_out_of_the_terminal(tmp_path: Path) -> None:
    name = "\x1b[31mred\a\u202e\u0085.png"
    (tmp_path / name).write_text("no picture")
    for arguments in (["predict", str(tmp_path), "-c", "none.pth", "-m", SMALL], ["info", name], ["features", name]):
        text = run(*arguments, fails=True)
        assert not {"\x1b", "\a", "\u202e", "\u0085"} & set(text)
    assert printable(name) == "\\x1b[31mred\\x07\\u202e\\x85.png"
    assert printable("caf\xe9 \u3000 \U0001f431") == "caf\xe9 \u3000 \U0001f431"


@pytest.mark.parametrize("command", ["features", "explain", "export", "benchmark", "validate", "weights convert"])
def test_where_a_command_writes_is_checked_before_it_works(
    command: str, place: fuzz_values.Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.models.create.resolve", lambda *_, **__: pytest.fail("it has begun"))
    given = {"validate": f"--data {place.images} -c {place.trained}", "weights convert": str(place.trained)}
    given |= {"features": str(place.root / "red.png"), "explain": f"{place.root / 'red.png'} -m davit_tiny"}
    (tmp_path / "file").write_text("text")
    for target in (tmp_path, tmp_path / "file" / "out.safetensors"):
        output = [str(target), "-m", SMALL] if command == "weights convert" else ["-o", str(target)]
        text = run(*command.split(), *given.get(command, str(place.trained)).split(), *output, fails=True)
        assert str(target) in text.replace("\n", "")


def test_weights_that_are_no_numbers_are_refused(place: fuzz_values.Place, tmp_path: Path) -> None:
    model = zoo.create_model(SMALL)
    model.get_classifier().bias.data[3] = torch.nan
    torch.save(model.state_dict(), tmp_path / "nan.pth")
    options = "-c", str(tmp_path / "nan.pth")
    for arguments in (["predict", PHOTO, "-m", SMALL], ["export", SMALL, "-o", str(tmp_path / "out.onnx")]):
        assert "hold NaN or infinity, the first is head.fc.bias" in run(*arguments, *options, fails=True)
    assert "nan%" in run("predict", PHOTO, "-m", SMALL, *options, "--allow-nan")


def test_a_model_that_is_assumed_is_named(tmp_path: Path) -> None:
    save_file(zoo.create_model(SMALL).state_dict(), tmp_path / "plain.safetensors")
    done = zoo_process(f"predict {shlex.quote(PHOTO)} -c {tmp_path / 'plain.safetensors'}")
    assert done.returncode == 1
    assert "does not say which model it is of: davit_tiny is assumed" in done.stderr


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    """Links are followed, and names of any length that the system allows are written."""
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(OSError, match="is not a file, and is not replaced by one"):
        write_text(tmp_path / "pipe.json", "text")
    assert "is not a file, expected the name of a file" in run(
        "benchmark", SMALL, "-o", str(tmp_path / "pipe.json"), fails=True
    )
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_text(tmp_path / "link.json", "text")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "text"
    write_text(tmp_path / ("x" * 250 + ".json"), "text")
    assert {path.name[:5] for path in tmp_path.iterdir()} == {"pipe.", "link.", "real.", "xxxxx"}


@pytest.mark.parametrize("name", ["recipe.yaml", "classes.txt", "weights.pth", "weights.safetensors"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    path, kind = str(tmp_path / name), name.partition(".")[2]
    data = "train", "digits", "--classes", path, "-o", str(tmp_path / "run")
    commands = {"yaml": ["train", path], "txt": data, "pth": ["predict", PHOTO, "-m", SMALL, "-c", path]}
    assert path in run(*commands.get(kind, ["predict", PHOTO, "-c", path]), fails=True).replace("\n", "")


def test_a_home_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_HOME", "~nosuchuser/x")
    assert "~nosuchuser/x: Could not determine home directory; set ZOO_HOME" in run("weights", "list", fails=True)


def test_help_that_cannot_be_written() -> None:
    full = zoo_process("--help > /dev/full")
    assert full.returncode == 1
    assert full.stderr == "error: [Errno 28] No space left on device\n"


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "found.json", {"loss": torch.nan, "per_class": {"a": -torch.inf, "b": [1.5, None]}})
    assert json.loads((tmp_path / "found.json").read_text()) == {
        "loss": None,
        "per_class": {"a": None, "b": [1.5, None]},
    }


def test_warnings_are_printable(tmp_path: Path) -> None:
    torch.save(zoo.create_model(SMALL).state_dict(), tmp_path / "\x1b[31m.pth")
    text = run("predict", PHOTO, "-c", str(tmp_path / "\x1b[31m.pth"), fails=True)
    assert "warning: " in text
    assert "\\x1b[31m.pth does not say which model" in text.replace("\n", "")
    assert "\x1b" not in text
