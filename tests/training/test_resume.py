"""Runs that are stopped, killed or run out of disk go on as if nothing had happened."""

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
import torch
from safetensors.torch import load_file

from tests.training.conftest import TINY
from zoo.errors import CheckpointError, ConfigError
from zoo.training import engine
from zoo.training.claim import BEST
from zoo.training.data.loading import ImageSet
from zoo.training.engine import Interrupted, Run, train
from zoo.training.recipe import Recipe
from zoo.weights.verified import read_verified, write_verified

CHANCE = {"ema": 0.9, "mixup": 0.4, "drop_rate": 0.2, "drop_path_rate": 0.3, "layer_decay": 0.9, "clip_grad": 1.0}
"""Everything that draws random numbers or has a state of its own."""


def assert_same_run(one: Path, other: Path) -> None:
    names, found = (sorted(name for name in os.listdir(run) if name[0] != ".") for run in (one, other))
    assert found == names  # a killed process may leave a hidden file behind
    for name in ("last.safetensors", "best.safetensors"):
        expected, found = load_file(one / name), load_file(other / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert (one / "history.csv").read_text() == (other / "history.csv").read_text()


def test_a_stopped_run_goes_on_bit_equal(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of an epoch, and again at its last step, before its validation."""
    recipe = tiny(**CHANCE)
    train(recipe, tmp_path / "whole")
    step = Run._step

    def stopped(self: Run, batch: object) -> None:
        self.interrupt.asked = self.progress.step in (2, 3)
        step(self, batch)

    monkeypatch.setattr(Run, "_step", stopped)
    for _ in range(2):
        with pytest.raises(Interrupted, match="--resume auto"):
            train(recipe, tmp_path / "parts", resume=True)
    train(recipe, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_is_not_overwritten_nor_mixed_with_another(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    train(tiny(epochs=1), tmp_path / "run")
    with pytest.raises(ConfigError, match="--resume auto"):
        train(tiny(epochs=1), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"another recipe: .*lr: 0.002, now 0.1"):
        train(tiny(epochs=1, lr=0.1), tmp_path / "run", resume=True)
    before = load_file(tmp_path / "run" / "last.safetensors")
    summary = train(tiny(epochs=1), tmp_path / "run", resume=True)  # nothing is left to do
    assert summary["epochs"] == 1
    assert all(torch.equal(before[key], value) for key, value in load_file(tmp_path / "run/last.safetensors").items())


def test_a_run_does_not_go_on_with_other_data(tiny: Callable[..., Recipe], folder: Path, tmp_path: Path) -> None:
    recipe = tiny()
    train(recipe, tmp_path / "run")
    (folder / "red" / "000.png").unlink()
    with pytest.raises(CheckpointError, match="42 training and 6 validation images and 41 training"):
        train(recipe, tmp_path / "run", resume=True)
    (folder / "red" / "000.png").write_bytes((folder / "red" / "001.png").read_bytes())
    os.rename(folder / "red" / "000.png", folder / "red" / "swap")
    os.rename(folder / "blue" / "000.png", folder / "red" / "000.png")
    os.rename(folder / "red" / "swap", folder / "blue" / "000.png")
    with pytest.raises(CheckpointError, match=r"images are others in blue \(\w+\), red \(\w+\)"):
        train(recipe, tmp_path / "run", resume=True)
    shutil.rmtree(folder / "red")
    with pytest.raises(CheckpointError, match="its classes were others, see red"):
        train(recipe, tmp_path / "run", resume=True)


def test_a_damaged_state_is_passed_over(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe, said = tiny(), []
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "run")
    last = max((tmp_path / "run" / "state").iterdir())
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    train(recipe, tmp_path / "run", resume=True, say=said.append)
    assert "passed over" in said[0]
    assert "is damaged" in said[0]
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    for path in (tmp_path / "run" / "state").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="no state of this run is whole"):
        train(recipe, tmp_path / "run", resume=True)


def test_what_a_file_says_of_its_tensors_is_checked_too(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    """One bit of a state's or a checkpoint's header."""
    train(tiny(), tmp_path / "run")
    state = max((tmp_path / "run" / "state").iterdir())
    for path, said, other in (state, b'step\\": 8', b'step\\": 9'), (tmp_path / "run" / BEST, b"green", b"greem"):
        content = path.read_bytes()
        assert said in content
        path.write_bytes(content.replace(said, other))
        with pytest.raises(CheckpointError, match="is damaged, its checksum is another one"):
            read_verified(path)


@pytest.mark.parametrize("call", ["weights.verified.save_file", "files.flush", "files.os.replace"])
def test_a_file_is_old_or_new_but_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "state.safetensors"
    write_verified(path, {"x": torch.zeros(3)}, {"step": "1"})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"zoo.{call}", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.* kept"):
        write_verified(path, {"x": torch.ones(3)}, {"step": "2"})
    monkeypatch.undo()
    tensors, about = read_verified(path)
    assert about["step"] == "1"
    assert torch.equal(tensors["x"], torch.zeros(3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_loss_that_is_not_finite_is_skipped_and_three_stop(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, said = Run._step, []

    def poisoned(self: Run, batch: object) -> None:
        bad = self.progress.step in (1, 4, 5, 6)
        step(self, batch._replace(images=batch.images * float("nan")) if bad else batch)

    monkeypatch.setattr(engine.Run, "_step", poisoned)
    with pytest.raises(ConfigError, match=r"3 steps in a row .* last good checkpoint is kept"):
        train(tiny(), tmp_path / "run", say=said.append)
    assert said[0].startswith("step 2: loss nan")
    assert len(said) == 4
    weights = load_file(tmp_path / "run" / "last.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_skipped_step_leaves_the_statistics_of_batch_norms(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Run._step

    def poisoned(self: Run, batch: object) -> None:
        bad = self.progress.step == 1
        step(self, batch._replace(images=batch.images * float("nan")) if bad else batch)

    monkeypatch.setattr(engine.Run, "_step", poisoned)
    stem = {"type": "conv", "layers": [{"kernel": 4, "stride": 4, "padding": 0, "norm": "batchnorm"}]}
    overrides = {**TINY["overrides"], "stem": stem}
    summary = train(tiny(overrides=overrides, epochs=1), tmp_path / "run")
    assert summary["skipped_steps"] == 1
    weights = load_file(tmp_path / "run" / "last.safetensors")
    assert any("running_var" in name for name in weights)
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_killed_reader_is_explained(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageSet, "_read", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ConfigError, match=r"a process that reads images has ended .*--workers"):
        train(tiny(workers=1), tmp_path / "run")


def test_a_reader_ends_though_its_run_was_killed_before_it_began() -> None:
    """The output ends when no process holds it any more."""
    said = subprocess.run(
        [sys.executable, "-c", ORPHAN], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60
    )
    assert said.returncode == -signal.SIGKILL
    assert said.stdout == "begun\n"


ORPHAN = """
import multiprocessing, os, signal, time
from zoo.training.data.loading import _start_worker

def read(parent):
    while os.getppid() == parent:
        time.sleep(0.01)
    print("begun", flush=True)
    _start_worker(0)
    signal.pause()

multiprocessing.get_context("fork").Process(target=read, args=(os.getpid(),)).start()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["kill", "term", "int"])
def test_stopped_at_any_moment_a_run_goes_on_bit_equal(
    tiny: Callable[..., Recipe], tmp_path: Path, how: str, workers: int
) -> None:
    """`python -m tests.training.interrupting` takes any number of moments."""
    recipe, times = tiny(**CHANCE, epochs=5, save_steps=2, workers=workers), 5
    start = time.perf_counter()
    train(recipe, tmp_path / "whole")
    longest = 0.2 + (time.perf_counter() - start) / 4
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    command = [sys.executable, "-m", "tests.training.interrupting", how, str(times), str(longest)]
    done = subprocess.run(
        [*command, str(tmp_path / "recipe.yaml"), str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=300,
    )
    *statuses, last = map(int, done.stderr.split()[-times - 1 :])
    assert last == 0, done.stdout + done.stderr
    assert set(statuses) <= {0, -signal.SIGKILL if how == "kill" else 130}, done.stderr
    assert any(statuses)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
