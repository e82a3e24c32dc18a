"""A folder is one run's, single images are refused before the first step, and names of any bytes end no run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import zoo
from tests.test_cli import run
from tests.training.conftest import TINY
from zoo.errors import ConfigError
from zoo.training import claim
from zoo.training.claim import claimed
from zoo.training.engine import train
from zoo.training.norms import check_single_images
from zoo.training.recipe import Recipe

Maker = Callable[..., Recipe]
STEM = {"type": "conv", "layers": [{"kernel": 4, "stride": 4, "padding": 0, "norm": "batchnorm"}]}


def test_two_runs_do_not_share_a_folder(tiny: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "PATIENCE", 0.1)
    with claimed(tmp_path / "run", True), pytest.raises(ConfigError, match="another run is writing to it"):
        train(tiny(epochs=1), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    with claimed(tmp_path / "run", True), claimed(tmp_path / "run", False):
        pass


def test_a_run_without_its_states_is_kept(tiny: Maker, tmp_path: Path) -> None:
    train(tiny(epochs=1), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "state")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=r"are gone, so that it cannot go on, and its checkpoints are kept"):
        train(tiny(epochs=1), tmp_path / "run", resume=True)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}


SINGLE = [{"batch_size": 1}, {"batch_size": 3, "micro_batch": 2}, {"batch_size": 4, "micro_batch": 1}]


@pytest.mark.parametrize("changes", SINGLE)
def test_a_single_image_for_a_batch_norm_is_refused_first(tiny: Maker, tmp_path: Path, changes: dict) -> None:
    overrides = {**TINY["overrides"], "stem": STEM}
    with pytest.raises(ConfigError, match=r"single image on a map of one pixel.*batch_size.*img_size.*freeze"):
        train(tiny(overrides=overrides, img_size=[4, 4], epochs=1, workers=0, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_a_model_is_as_before_the_check(small: str) -> None:
    """Larger maps are enough for one image."""
    model = zoo.create_model(small).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_single_images(model, (3, 96, 96))
    assert model.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_text(tiny: Maker, folder: Path, tmp_path: Path) -> None:
    """Of a bad picture, and of a class."""
    os.rename(os.fsencode(folder / "red"), os.fsencode(folder) + b"/r\xf6d")
    Path(os.fsdecode(os.fsencode(folder) + b"/r\xf6d/b\xe4d.png")).write_text("junk")
    (tmp_path / "recipe.yaml").write_text(tiny(epochs=1, workers=0).to_yaml())
    run("train", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "run"))
    assert "r\\udcf6d/b\\udce4d.png,no" in (tmp_path / "run" / "images.csv").read_text(encoding="utf-8")
    run("train", "-o", str(tmp_path / "run"), "--resume", "auto")
    table = run("predict", str(folder), "-c", str(tmp_path / "run" / "best.safetensors"), fails=True)
    assert "b\\udce4d.png: cannot be read as a picture" in table


NAMES = ["[red]", "[/]", ":cat:", "$a_$", "[bold]x", "a b"]


def test_names_are_shown_as_they_are(tiny: Maker, folder: Path, tmp_path: Path) -> None:
    for name, other in zip(("blue", "green", "red"), NAMES[:3], strict=True):
        (folder / name).rename(folder / other.replace("/", "\\"))
    (folder / "[red]").rename(folder / "$a_$")
    (tmp_path / "recipe.yaml").write_text(tiny(epochs=1, workers=0).to_yaml())
    output = tmp_path / "[run]"
    assert "[run]" in run("train", str(tmp_path / "recipe.yaml"), "-o", str(output)).replace("\n", "")
    best, names = str(output / "best.safetensors"), {path.name for path in folder.iterdir()}
    for command in ("validate", "--data", str(folder), "--workers", "0"), ("predict", str(folder), "--topk", "3"):
        text = run(*command, "-c", best)
        assert all(name in text for name in names), text


def test_validation_without_a_readable_image_fails(tiny: Maker, folder: Path, tmp_path: Path) -> None:
    train(tiny(epochs=1, workers=0), tmp_path / "run")
    for path in folder.glob("*/*"):
        path.write_text("junk")
    options = "--data", str(folder), "--workers", "0", "-c", str(tmp_path / "run" / "best.safetensors")
    text = run("validate", *options, fails=True)
    assert "none of the 48 images can be read; the first is" in text
    assert "not a picture" in text


def test_a_trained_checkpoint_is_not_called_random(tiny: Maker, folder: Path, tmp_path: Path) -> None:
    train(tiny(epochs=1, workers=0), tmp_path / "run")
    picture, best = str(next((folder / "red").iterdir())), str(tmp_path / "run" / "best.safetensors")
    for command in ("features", picture, "-m", best), ("explain", picture, "-m", best, "--size", "32"):
        assert "random" not in run(*command, "-o", str(tmp_path / "out.png"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves(tiny: Maker, tmp_path: Path, number: int) -> None:
    """As a terminal, a scheduler or a container sends it: to the readers too."""
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(tiny(epochs=2000, workers=2).to_yaml())
    command = [sys.executable, "-m", "zoo", "train", str(recipe), "-o", str(output)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, **pipes)
    while not list(output.glob("state/*")) and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, number)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 130, text
    assert "Traceback" not in text
