"""Reserves the output folder of a run for one run and one process at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from zoo.config.schema import check
from zoo.errors import ConfigError, Where
from zoo.files import make_writable
from zoo.training.recipe import Recipe, differences, load_recipe
from zoo.weights.verified import read_metadata

RECIPE, BEST, LAST = "run.yaml", "best.safetensors", "last.safetensors"
LOCK = ".lock"
FILES = (LOCK, RECIPE, BEST, LAST, "history.csv", "images.csv", "summary.json", "model.yaml")
FOLDERS = ("state", "tensorboard")
PATIENCE = 10.0
"""Seconds for which the reader processes of a killed run may survive it."""


class Claim:
    """The reservation of a folder."""

    def __init__(self, output: Path, main: bool) -> None:
        self._output, self._main = output, main
        self._held = _identity(output / LOCK)

    def check(self) -> None:
        """Check that the folder is still this run's, before something is written to it.

        Raises:
            ConfigError: if it was removed, moved or made anew, perhaps for another run.
        """
        if self._main and _identity(self._output / LOCK) != self._held:
            raise ConfigError(
                f"{self._output}: was removed, moved or taken by another run while this one was writing to it; this "
                "run ends here and writes nothing more"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def claimed(output: Path, main: bool) -> Iterator[Claim]:
    """Within this context no other run writes to `output`, which is created if necessary.

    Args:
        main: whether this is the process that writes.

    Raises:
        ConfigError: if another run does, or the folder is not writable.
    """
    _check_place(output)
    if not main:
        yield Claim(output, main)
        return
    lock, held = FileLock(output / LOCK), True
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise ConfigError(
            f"{output}: another run is writing to it; wait for its end, or pass another --output"
        ) from None
    except (NotImplementedError, OSError):  # a file system without locks
        held = False
    try:
        yield Claim(output, main)
    finally:
        if held:
            lock.release()  # the file stays: another process may be waiting for it


def _check_place(output: Path) -> None:
    """Create a folder and check that a run can write there.

    Raises:
        ConfigError: if not.
    """
    check(str(output), str, Where("output"))
    try:
        make_writable(output)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror or error})") from error
    for name in FILES:
        if (output / name).is_dir():
            raise ConfigError(f"{output / name}: is a folder, and the run writes a file of this name")
    for name in FOLDERS:
        if (output / name).is_file():
            raise ConfigError(f"{output / name}: is a file, and the run writes a folder of this name")


def check_claim(recipe: Recipe, output: Path, resume: bool) -> None:
    """Check that a run already in the folder is the one to resume, and that it can be resumed.

    Raises:
        ConfigError: if not.
    """
    path = output / RECIPE
    states = list((output / "state").glob("step-*.safetensors"))
    results = [name for name in ("history.csv", BEST, LAST) if (output / name).exists()]
    if not path.exists():
        if held := [*results, *(["state"] if states else [])]:
            raise ConfigError(
                f"{output}: holds {', '.join(held)} of a run whose {RECIPE} is gone; put it back to go on with that "
                "run, or pass another --output"
            )
        return
    if not resume:
        raise ConfigError(f"{output}: holds a run; pass --resume auto to go on with it, or another --output")
    if changed := differences(load_recipe(path), recipe):
        raise ConfigError(f"{output}: holds a run of another recipe: {'; '.join(changed)}")
    if results and not states:
        raise ConfigError(
            f"{output}: holds a run whose states, {output / 'state'}, are gone, so that it cannot go on, and its "
            "checkpoints are kept; start from them with --checkpoint and another --output"
        )


def check_best(output: Path, history: Sequence[Mapping[str, float]], best_epoch: int) -> None:
    """Check that the best checkpoint in a folder is the one that a resumed run has written.

    It may be newer than the state: a run may end between the two.

    Raises:
        ConfigError: if it is gone, cannot be read, or is that of another run.
    """
    if not best_epoch:
        return
    path = output / BEST
    if not path.is_file():
        raise ConfigError(
            f"{path}: is gone, so that this run cannot be completed; put it back, or start from {LAST} with "
            "--checkpoint and another --output"
        )
    try:
        row = json.loads(read_metadata(path).get("metrics", ""))
        epoch = row["epoch"]
    except (ValueError, KeyError, TypeError):
        epoch = row = None
    newer = epoch == len(history) + 1
    if not newer and (epoch != best_epoch or json.dumps(row) != json.dumps(history[best_epoch - 1])):
        raise ConfigError(
            f"{path}: is not the checkpoint that this run wrote after epoch {best_epoch}; put that back, or pass "
            "another --output"
        )
