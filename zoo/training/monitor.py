"""Shows the progress of a run: a display on a terminal, lines in a log, events for TensorBoard."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Display

from zoo.training.events import Events
from zoo.training.recipe import Recipe
from zoo.training.state import Progress

console = Console()


class Monitor:
    """Shows a run while it is open.

    Args:
        output: output folder of the run; events go to `tensorboard` in it.
        progress: the state from which the run starts.
        steps: number of steps in an epoch.
        main: whether this process shows anything.
    """

    def __init__(self, output: Path, recipe: Recipe, progress: Progress, steps: int, main: bool) -> None:
        self.recipe, self.progress, self.steps, self.main = recipe, progress, steps, main
        if main:
            self.events = Events(output / "tensorboard", progress.step)
            self.display = _display() if console.is_terminal else None
        self.since, self.first = time.perf_counter(), progress.step

    def __enter__(self) -> Monitor:
        if self.main and self.display:
            self.display.start()
            total = self.steps * self.recipe.epochs
            self.task = self.display.add_task("", total=total, completed=self.progress.step, status="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.main:
            self.events.close()
        if self.main and self.display:
            self.display.stop()

    def step(self, loss: float, lr: float, norm: float) -> None:
        """Report a step."""
        if not self.main:
            return
        step = self.progress.step
        status = f"loss {loss:.4f}  lr {lr:.2e}  {self._speed():.0f} images/s  {_memory()}"
        epoch = (step - 1) // self.steps + 1
        if self.display:
            self.display.update(
                self.task, completed=step, description=f"epoch {epoch}/{self.recipe.epochs}", status=status
            )
        elif step % self.recipe.log_every == 0:
            left = (self.recipe.epochs * self.steps - step) * (time.perf_counter() - self.since) / (step - self.first)
            place = f"epoch {epoch}/{self.recipe.epochs}  step {(step - 1) % self.steps + 1}/{self.steps}"
            print(f"{place}  {status}  {left:.0f} s left", flush=True)
        if step % self.recipe.log_every == 0:
            values = {"loss": loss, "lr": lr, "gradient_norm": norm, "images_per_second": self._speed()}
            self.events.add({f"train/{name}": value for name, value in values.items()}, step)

    def epoch(self, row: dict[str, Any]) -> None:
        """Report a validated epoch."""
        if not self.main:
            return
        text = (
            f"epoch {row['epoch']}/{self.recipe.epochs}  train loss {row['train_loss']:.4f}  loss {row['loss']:.4f}  "
        )
        text += f"top-1 {row['top1']:.2f} %  top-5 {row['top5']:.2f} %"
        console.print(text, highlight=False) if self.display else print(text, flush=True)
        names = ("loss", "top1", "top5", "calibration_error")
        self.events.add({f"validation/{name}": row[name] for name in names}, self.progress.step, flush=True)

    def _speed(self) -> float:
        seconds = time.perf_counter() - self.since
        return (self.progress.step - self.first) * self.recipe.batch_size / max(seconds, 1e-9)


def _display() -> Display:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
    )
    return Display(*columns, TimeRemainingColumn(), console=console)


def _memory() -> str:
    """The peak GPU memory so far, or the memory of this process."""
    cuda = torch.cuda.is_available()
    held = torch.cuda.max_memory_allocated() if cuda else psutil.Process().memory_info().rss
    return f"{held / 2**30:.1f} GiB"
