"""Reserves the output folder of a run for one run and one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from filelock import FileLock, Timeout

from zoo.errors import ConfigError
from zoo.training.recipe import Recipe, differences, load_recipe

RECIPE, BEST, LAST = "run.yaml", "best.safetensors", "last.safetensors"
LOCK = ".lock"
PATIENCE = 10.0
"""Seconds for which the reader processes of a killed run may survive it."""


@contextmanager
def claimed(output: Path, main: bool) -> Iterator[None]:
    """Within this context no other run writes to `output`, which is created if necessary.

    Args:
        main: whether this is the process that writes.

    Raises:
        ConfigError: if another run does, or the folder is not writable.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=output).close()
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror or error})") from error
    if not main:
        yield
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
        yield
    finally:
        if held:
            lock.release()  # the file stays: another process may be waiting for it


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
