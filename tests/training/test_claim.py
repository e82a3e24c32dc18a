"""A folder is one run's, single images are refused before the first step, and names of any bytes end no run."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import typer
from tensorboard.summary.writer.record_writer import RecordWriter

import zoo
from tests.test_cli import run
from tests.training.conftest import TINY, hear_signals
from tests.training.test_resume import assert_same_run
from zoo.cli.output import _reported
from zoo.errors import CheckpointError, ConfigError
from zoo.stop import Stop
from zoo.training import claim, engine
from zoo.training.claim import claimed
from zoo.training.data.loading import Batch, TrainingOrder
from zoo.training.engine import Interrupted, train
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


@pytest.mark.parametrize("lost", [["run.yaml"], ["run.yaml", "state"], ["run.yaml", "history.csv", "state"]])
def test_results_of_a_run_whose_recipe_is_gone_are_kept(tiny: Maker, tmp_path: Path, lost: list[str]) -> None:
    train(tiny(epochs=1), output := tmp_path / "run")
    for name in lost:
        shutil.rmtree(output / name) if (output / name).is_dir() else (output / name).unlink()
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"best.safetensors.* of a run whose run.yaml is gone; put it back"):
            train(tiny(epochs=2, seed=7), output, resume=resume)
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_states_of_another_run_never_win(tiny: Maker, tmp_path: Path) -> None:
    """Not even later ones, whoever has put them there."""
    train(tiny(epochs=2, seed=7), tmp_path / "old")
    train(tiny(epochs=1), tmp_path / "run")
    (other,) = (tmp_path / "old" / "state").glob("*8.safetensors")
    shutil.copy(other, tmp_path / "run" / "state")
    with pytest.raises(CheckpointError, match=r"step-000000008.safetensors: is a state of another run: move it out"):
        train(tiny(epochs=2), tmp_path / "run", resume=True)
    (tmp_path / "run" / "state" / other.name).unlink()
    assert train(tiny(epochs=2), tmp_path / "run", resume=True)["steps"] == 8


def test_a_run_whose_folder_is_taken_away_writes_nothing_more(
    tiny: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, step = tmp_path / "run", engine.Run._step

    def taken(self: engine.Run, batch: Batch) -> None:
        step(self, batch)
        if not (tmp_path / "elsewhere").exists():
            output.rename(tmp_path / "elsewhere")
            train(tiny(epochs=1, seed=7, workers=0), output)

    monkeypatch.setattr(engine.Run, "_step", taken)
    with pytest.raises(ConfigError, match="was removed, moved or taken by another run"):
        train(tiny(epochs=1, workers=0), output)
    train(tiny(epochs=1, seed=7, workers=0), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", output)


def test_the_best_checkpoint_must_be_this_runs_own(tiny: Maker, tmp_path: Path) -> None:
    train(tiny(epochs=2), output := tmp_path / "run")
    train(tiny(epochs=1, seed=7), tmp_path / "other")
    (output / "best.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"best.safetensors: is gone, .* start from last.safetensors"):
        train(tiny(epochs=3), output, resume=True)
    shutil.copy(tmp_path / "other" / "best.safetensors", output)
    with pytest.raises(ConfigError, match=r"is not the checkpoint that this run wrote after epoch \d"):
        train(tiny(epochs=3), output, resume=True)


@pytest.mark.parametrize("name", [".lock", "run.yaml", "history.csv", "best.safetensors"])
def test_a_folder_where_a_file_is_to_be_is_said_first(tiny: Maker, tmp_path: Path, name: str) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"{name}: is a folder"):
        train(tiny(), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "state").write_text("text")
    with pytest.raises(ConfigError, match="state: is a file"):
        train(tiny(), tmp_path / "other")


def test_a_damaged_list_of_images_is_named(tiny: Maker, tmp_path: Path) -> None:
    train(tiny(epochs=1), tmp_path / "run")
    (tmp_path / "run" / "images.csv").write_bytes(b'\xff\x00garbage,,\n"')
    with pytest.raises(ConfigError, match=r"images.csv: is damaged .* remove it"):
        train(tiny(epochs=2), tmp_path / "run", resume=True)


def test_a_run_in_a_thread(tiny: Maker, tmp_path: Path) -> None:
    """Threads get no signals."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train, tiny(epochs=1, workers=0), tmp_path / "run").result()["epochs"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_folders_whose_names_are_no_text_are_refused_first(tiny: Maker, tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/d\xff")
    with pytest.raises(ConfigError, match=r"data: found .*expected text in UTF-8: rename"):
        tiny(data=name)
    with pytest.raises(ConfigError, match=r"output: found .*expected text in UTF-8: rename"):
        train(tiny(), Path(name))


def test_classes_that_look_alike_are_refused(tiny: Maker, folder: Path, tmp_path: Path) -> None:
    (folder / "red").rename(folder / "x\x1by")
    (folder / "blue").rename(folder / "x\\x1by")
    with pytest.raises(ConfigError, match="has 2 classes whose names look like"):
        train(tiny(), tmp_path / "run")


@pytest.mark.parametrize("place", ["/", "/proc", "/sys/class", "/dev"])
def test_the_operating_system_is_no_data(tiny: Maker, tmp_path: Path, place: str) -> None:
    with pytest.raises(ConfigError, match="is the operating system's"):
        train(tiny(data=place), tmp_path / "run")


def test_a_link_back_is_no_class(tiny: Maker, folder: Path, tmp_path: Path) -> None:
    (folder / "red" / "up").symlink_to(folder, target_is_directory=True)
    with pytest.raises(ConfigError, match="a link leads back to a folder that it is in"):
        train(tiny(), tmp_path / "run")


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


def test_a_signal_in_validation_is_heard_there(tiny: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And in the report; nothing that was trained is lost."""
    recipe, seen = tiny(workers=0, ema=0.9), []
    train(recipe, tmp_path / "whole")
    read = engine.Run._to_validate

    def signalled(self: engine.Run) -> Iterator[Batch]:
        seen.append(self.progress.step)
        if len(seen) in (1, 3, 5):
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self)

    monkeypatch.setattr(engine.Run, "_to_validate", signalled)
    for step in (4, 8, 8):
        with pytest.raises(Interrupted, match=f"stopped at step {step}"):
            train(recipe, tmp_path / "run", resume=True)
    train(recipe, tmp_path / "run", resume=True)
    assert seen == [4, 4, 8, 8, 8, 8]
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_readers_that_hear_the_signal_first_lose_nothing(
    tiny: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe := tiny(workers=0), tmp_path / "whole")
    iterate = TrainingOrder.__iter__

    def ending(self: TrainingOrder) -> Iterator[list[tuple[int, int]]]:
        for number, batch in enumerate(iterate(self)):
            if number == 2 and self.start == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")
            yield batch

    monkeypatch.setattr(TrainingOrder, "__iter__", ending)
    with pytest.raises(Interrupted, match="stopped at step 2"):
        train(recipe, tmp_path / "run", resume=True)
    monkeypatch.undo()
    train(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_full_disk_under_tensorboard_ends_no_run(
    tiny: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    assert train(tiny(workers=0), tmp_path / "run")["epochs"] == 2
    said = "".join(capfd.readouterr())
    assert said.count("TensorBoard's events cannot be written and are left out: [Errno 28]") == 1
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_goes_on(tiny: Maker, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(tiny(workers=0).to_yaml())
    command = f"{shlex.quote(sys.executable)} -m zoo train {tmp_path}/recipe.yaml -o {tmp_path}/run"
    for number, output in enumerate(("| head -1", "> /dev/full")):
        place = f"{tmp_path}/run{number}"
        pipe = f"set -o pipefail; {command}{number} {output}"
        done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        assert (Path(place) / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("seconds", [0.3, 1.5])
def test_a_signal_at_the_start_ends_with_130(tiny: Maker, tmp_path: Path, number: int, seconds: float) -> None:
    with _started(tiny(epochs=2000), tmp_path) as process:
        _wait_until_heard(process.pid)
        time.sleep(seconds)
        process.send_signal(number)
        text = process.communicate(timeout=60)[0]
    assert process.returncode == 130, text
    assert "Traceback" not in text


@pytest.mark.slow
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_saves(tiny: Maker, tmp_path: Path, number: int, twice: bool) -> None:
    """As a terminal, a scheduler or a container sends it: to the readers too."""
    with _started(tiny(epochs=2000, workers=2), tmp_path) as process:
        while not list(tmp_path.glob("run/state/*")) and process.poll() is None:
            time.sleep(0.1)
        os.killpg(process.pid, number)
        if twice:
            time.sleep(0.01)
            os.killpg(process.pid, number)
        text = process.communicate(timeout=60)[0]
    assert process.returncode == 130, text
    assert "Traceback" not in text


@pytest.fixture
def _stoppable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGTERM is heard as by a command."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = signal.signal(signal.SIGTERM, Stop())
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_stoppable")
def test_a_signal_that_an_import_has_swallowed_is_heard(tiny: Maker, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped at step 1"):
        train(tiny(workers=0), tmp_path / "run")


@pytest.mark.usefixtures("_stoppable")
@pytest.mark.parametrize("error", [RecursionError, ImportError, RuntimeError])
def test_a_signal_of_which_an_import_makes_another_error_is_heard(error: type[Exception]) -> None:
    """As Python's import system and libraries that catch any error while they are imported do."""
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(typer.Exit) as end, _reported():
        raise error("while importing")
    assert end.value.exit_code == 130


@pytest.mark.usefixtures("_stoppable")
def test_a_signal_in_a_destructor_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)

    class Loader:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

    loader = Loader()
    del loader
    assert not seen


def _wait_until_heard(pid: int) -> None:
    """Python itself needs up to a second before it runs a first line, during which a signal ends it as any process."""
    status, last = Path(f"/proc/{pid}/status"), 1 << (signal.SIGHUP - 1)
    while status.exists() and not int(status.read_text().split("SigCgt:")[1].split()[0], 16) & last:
        time.sleep(0.02)


@contextmanager
def _started(recipe: Recipe, folder: Path) -> Iterator[subprocess.Popen]:
    """A run as a terminal starts it, in a group of its own; what is left of it is killed."""
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    process = subprocess.Popen(
        [sys.executable, "-m", "zoo", "train", str(folder / "recipe.yaml"), "-o", str(folder / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hear_signals,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
