"""`zoo train` as a person uses it: from a recipe to a checkpoint that predicts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import zoo
from tests.test_cli import run
from tests.training.conftest import TINY, hear_signals, zoo_command
from zoo.errors import CheckpointError
from zoo.training.engine import train
from zoo.training.recipe import Recipe, load_recipe

Maker = Callable[..., Recipe]
OUTPUTS = {
    ".lock", "run.yaml", "best.safetensors", "last.safetensors", "state", "tensorboard", "history.csv", "summary.json",
    "curves.png", "confusion.png", "predictions.png",
}  # fmt: skip


@pytest.mark.slow
def test_digits_in_short(tmp_path: Path) -> None:
    """What scripts/quickstart.sh does: train, save, load, predict; the full recipe is for 98 % and more."""
    output = tmp_path / "digits"
    run("train", "digits", "--epochs", "5", "--output", str(output))
    summary = json.loads((output / "summary.json").read_text())
    assert summary["top1"] >= 95
    assert 1e6 < summary["parameters"] < 1.5e6
    threes = sorted((output / "digits" / "validation" / "3").glob("*.png"))[:10]
    table = run("predict", *map(str, threes), "--checkpoint", str(output / "best.safetensors"), "--topk", "1")
    labels = [line.split("│")[2].strip() for line in table.splitlines() if "%" in line]
    assert labels.count("3") >= 7


def test_everything_of_a_run_lies_in_its_folder(tiny: Maker, folder: Path, tmp_path: Path) -> None:
    recipe = tiny(classes=str(_classes(tmp_path)))
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    output = tmp_path / "run"
    text = run("train", str(tmp_path / "recipe.yaml"), "-o", str(output))
    assert {path.name for path in output.iterdir()} == OUTPUTS
    for part in ("epoch 1/2", "loss", "lr", "images/s", "GiB", "s left", "top-1"):
        assert part in text
    assert load_recipe(output / "run.yaml") == recipe
    summary = json.loads((output / "summary.json").read_text())
    assert {"top1", "top5", "loss", "epochs", "images_per_second", "seconds"} <= summary.keys()
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, summary["steps"] + 1))
    assert len(events.Scalars("validation/top1")) == 2
    picture = str(next((folder / "red").iterdir()))
    assert "red" in run("predict", picture, "-c", str(output / "best.safetensors"))
    assert "red" in run("predict", picture, "-m", str(output / "best.safetensors"))


def _unnamed(tmp_path: Path) -> Path:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    return path


def _classes(tmp_path: Path) -> Path:
    path = tmp_path / "classes.txt"
    path.write_text("red\ngreen\nblue\n")
    return path


def test_a_checkpoint_says_what_it_is(tiny: Maker, tmp_path: Path) -> None:
    train(tiny(epochs=1), tmp_path / "run")
    path = tmp_path / "run" / "best.safetensors"
    model = zoo.create_model(str(path)).eval()
    assert model.num_classes == 3
    assert tuple(model.pretrained_cfg["label_names"]) == ("blue", "green", "red")
    assert model.pretrained_cfg["mean"] == [0.5, 0.5, 0.5]
    x = torch.rand(2, 3, 32, 32)
    again = zoo.create_model(str(path), num_classes=7)
    assert again.pretrained_cfg.get("label_names") is None
    assert again(x).shape == (2, 7)
    pyramid = zoo.create_model(str(path), features_only=True).eval()
    assert [level.shape[1] for level in pyramid(x)] == [16, 24]
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        zoo.create_model(str(path))
    with pytest.raises(CheckpointError, match="does not say which model it is of"):
        zoo.create_model(str(_unnamed(tmp_path)))


def test_a_model_of_ones_own_and_from_there_on(tiny: Maker, tmp_path: Path) -> None:
    """A configuration file is kept beside the checkpoint; a trained checkpoint is a model to train from."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: davit_tiny\nimg_size: 32\nstages:\n- {dim: 32, depth: 2}\n- {dim: 32, depth: 2}\n")
    train(tiny(model=str(mine), overrides={}, epochs=1), tmp_path / "first")
    mine.unlink()
    best = tmp_path / "first" / "best.safetensors"
    assert zoo.create_model(str(best)).config.family == "davit"
    few = tmp_path / "few.txt"
    few.write_text("red\nblue\n")
    changes = {"model": str(best), "overrides": {}, "epochs": 1, "classes": str(few), "freeze": "backbone"}
    train(tiny(**changes), tmp_path / "second")
    before, after = load_file(best), load_file(tmp_path / "second" / "last.safetensors")
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"head.fc.weight", "head.fc.bias"}
    assert zoo.create_model(str(tmp_path / "second" / "best.safetensors")).num_classes == 2


def test_micro_batches_change_nothing_and_are_found(
    tiny: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(epochs=1)
    train(recipe, tmp_path / "whole")
    forward = zoo.nn.backbone.Backbone.forward

    def small_memory(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.training and len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, x)

    monkeypatch.setattr(zoo.nn.backbone.Backbone, "forward", small_memory)
    train(recipe, tmp_path / "parts")
    whole, parts = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{"amp": "bf16"}, {"channels_last": True}, {"grad_checkpointing": True}])
def test_speed_and_memory_options_train_alike(tiny: Maker, tmp_path: Path, changes: dict) -> None:
    plain = train(tiny(epochs=1), tmp_path / "plain")
    other = train(tiny(epochs=1, **changes), tmp_path / "other")
    assert other["loss"] == pytest.approx(plain["loss"], abs=2e-2 if "amp" in changes else 1e-5)


def test_early_stop(tiny: Maker, tmp_path: Path) -> None:
    summary = train(tiny(epochs=20, early_stop=1, lr=1e-12, min_lr=0.0), tmp_path / "run")
    assert summary["epochs"] == summary["best_epoch"] + 1 == 2


@pytest.mark.slow
def test_ctrl_c_saves_and_ends(tiny: Maker, tmp_path: Path) -> None:
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(tiny(epochs=2000, workers=1).to_yaml())
    command = [sys.executable, "-m", "zoo", "train", str(recipe), "-o", str(output)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, preexec_fn=hear_signals, **pipes)
    while not list(output.glob("state/*")) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 130, text
    assert "go on with --resume auto" in " ".join(text.split())
    assert "Traceback" not in text
    assert "goes on at step" in zoo_command("train", "-o", str(output), "--resume", "auto", "--epochs", "3")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    text = run("train", "digits", "-o", str(tmp_path / "run"), fails=True)
    assert 'pip install "vision-zoo[train]"' in text.replace("\n", " ")
    assert "which recipe?" in run("train", fails=True)
    assert "did you mean 'digits'" in run("train", "digit", fails=True)
    assert "expected auto or never" in run("train", "digits", "--resume", "always", fails=True)


def test_validate(tiny: Maker, folder: Path, tmp_path: Path) -> None:
    train(tiny(epochs=1), tmp_path / "run")
    checkpoint, found = str(tmp_path / "run" / "best.safetensors"), tmp_path / "found.json"
    options = "validate", "--data", str(folder), "-c", checkpoint, "--workers", "0"
    text = run(*options, "--tta", "-o", str(found))
    assert "calibration_error" in text
    result = json.loads(found.read_text())
    assert result["images"] == 48
    assert set(result["per_class"]) == {"blue", "green", "red"}
    assert "ReaL labels are for the 1000 classes" in run(*options, "--real", fails=True)


def test_validation_of_a_plain_checkpoint(folder: Path, tmp_path: Path) -> None:
    """Without a label map the classes are those of the folders, if there are as many."""
    for classes, fails in ((3, False), (4, True)):
        model = zoo.create_model("maxvit_rmlp_pico_rw_256", num_classes=classes, img_size=32)
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        arguments = "-m", "maxvit_rmlp_pico_rw_256", "-c", str(tmp_path / "weights.pth"), "--workers", "0"
        text = run("validate", "--data", str(folder), *arguments, fails=fails)
        assert ("no names for them" in text) == fails


@pytest.mark.parametrize(
    "stem",
    [
        {"type": "patch_merging", "norm": "layernorm"},
        {"type": "deform", "norm": "batchnorm", "act": "gelu"},
        {"type": "cross_scale", "kernels": [2, 4], "stride": 2},
    ],
    ids=lambda stem: stem["type"],
)
def test_a_run_with_any_stem_ends_and_its_model_comes_back(tiny: Maker, tmp_path: Path, stem: dict) -> None:
    overrides = {**TINY["overrides"], "stem": stem}
    train(tiny(overrides=overrides, epochs=1), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == OUTPUTS
    model = zoo.create_model(str(tmp_path / "run" / "best.safetensors"))
    weights = load_file(tmp_path / "run" / "best.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
