"""The training loop: epochs, steps, validation, checkpoints, and every way in which a run may end."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from timm.utils import distribute_bn

from zoo.errors import ConfigError
from zoo.files import write_text
from zoo.training.claim import BEST, LAST, RECIPE, Claim, check_best, check_claim, claimed
from zoo.training.data.augmentation import left_out
from zoo.training.data.loading import NO_IMAGE, Batch
from zoo.training.evaluate import evaluate
from zoo.training.interrupt import Interrupt, any_of
from zoo.training.metrics import Metrics
from zoo.training.monitor import Monitor
from zoo.training.problems import Problems
from zoo.training.recipe import Recipe
from zoo.training.report import write_history, write_report
from zoo.training.setup import Parts, assemble
from zoo.training.state import Progress, load_state, save_state, save_weights
from zoo.training.step import Stepper

MOST_SKIPPED = 3
"""The number of consecutive steps without a finite loss."""
_GO_ON, _STOP, _TOO_BAD = 0, 1, 2


class Interrupted(Exception):
    """The run was asked to stop and has saved its state."""


def train(recipe: Recipe, output: Path, resume: bool = False, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train, and write everything to `output`.

    Args:
        recipe: the training recipe.
        output: a folder, created if necessary.
        resume: continue the run in `output`, if there is one.
        say: receives messages for the user.

    Returns:
        The content of `summary.json`: top1, top5, loss, epochs, images_per_second, seconds, ...

    Raises:
        ConfigError: for any error in recipe, data or devices, before the first step; later for too many unreadable
            images or losses that are not finite, keeping the last checkpoint.
        CheckpointError: if checkpoints cannot be read or written.
        Interrupted: after Ctrl-C or SIGTERM.
    """
    with claimed(output, int(os.environ.get("RANK", "0")) == 0) as claim:
        check_claim(recipe, output, resume)
        run = Run(assemble(recipe, output), claim, output, say)
        if run.main:
            write_text(output / RECIPE, recipe.to_yaml())
        if resume:
            run.go_on()
        with Interrupt() as run.interrupt, ExitStack() as run.closing, _readers_explained(run):
            return run.finish() if run.done else run.train()


@contextmanager
def _readers_explained(run: Run) -> Iterator[None]:
    """Explain the error when a process that reads images is killed, as by a second signal to the whole group."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        if run.interrupt.asked:
            raise Interrupted(f"stopped; go on from the last state in {run.output} with --resume auto") from None
        raise ConfigError(
            f"a process that reads images has ended ({error}): memory, or shared memory in a container, may have run "
            "out. Pass --workers with a smaller number, and --resume auto to go on from the last state."
        ) from error


class Run:
    """A run and its progress."""

    interrupt: Interrupt
    closing: ExitStack

    def __init__(self, parts: Parts, claim: Claim, output: Path, say: Callable[[str], None]) -> None:
        self.parts, self.output, self.recipe = parts, output, parts.recipe
        self.main = parts.accelerator.is_main_process
        self.claim = claim
        self.say = say if self.main else lambda text: None
        self.progress = Progress()
        self.stepper = Stepper(parts)
        images = len(parts.train) + len(parts.validation)
        self.problems = Problems(output / "images.csv", images, self.recipe.max_bad_share)
        self.skipped_in_a_row = 0
        self.since = time.perf_counter()

    def go_on(self) -> None:
        """Resume the run from its last saved state."""
        found = load_state(self.parts, self.output / "state")
        if found is None:
            return
        self.progress, damaged = found
        check_best(self.output, self.progress.history, self.progress.best_epoch)
        self.problems.read()
        self.parts.scheduler.step_update(max(self.progress.step - 1, 0))
        for text in damaged:
            self.say(f"passed over: {text}")
        if not self.done:
            self.say(f"goes on at step {self.progress.step}, epoch {min(self.epoch + 1, self.recipe.epochs)}")

    @property
    def epoch(self) -> int:
        """The epoch of the next step, from 0."""
        return self.progress.step // self.parts.order.steps

    @property
    def done(self) -> bool:
        """Whether no step is left, or further steps would not help."""
        waited = len(self.progress.history) - self.progress.best_epoch
        tired = self.recipe.early_stop is not None and waited >= self.recipe.early_stop
        return len(self.progress.history) >= self.recipe.epochs or tired

    def train(self) -> dict[str, Any]:
        """Train the remaining epochs and write the report."""
        steps = self.parts.order.steps
        if sentence := left_out(self.recipe):
            self.say(sentence)
        self.monitor = self.closing.enter_context(Monitor(self.output, self.recipe, self.progress, steps, self.main))
        while not self.done:
            self._train_epoch()
            metrics = self._validate()
            self._close_epoch(metrics)
        return self.finish()

    def _train_epoch(self) -> None:
        order = self.parts.order
        order.epoch, order.start = self.epoch, self.progress.step % order.steps
        if len(self.progress.history) < self.epoch:  # saved between the last step of an epoch and its validation
            return
        self.parts.model.train()
        if order.start == 0:
            self.progress.loss_sum, self.progress.loss_count = 0.0, 0
        self.mark = time.perf_counter()
        for batch in self._read(self.parts.train_loader):
            self._step(batch)

    def _read(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of a loader, whose processes may have heard before this one that the run is to stop."""
        try:
            yield from loader
        except RuntimeError:
            if not self.interrupt.asked or self.parts.accelerator.num_processes > 1:
                raise
            self._stop()

    def _step(self, batch: Batch) -> None:
        parts, progress = self.parts, self.progress
        self.problems.add(batch.notes)
        if (batch.targets == NO_IMAGE).any():
            self.problems.none_readable(f"{self.recipe.data}: none of the training images can be read")
        flag = _TOO_BAD if self.problems.too_many() else _STOP if self.interrupt.asked else _GO_ON
        parts.scheduler.step_update(progress.step)
        outcome = self.stepper(batch, progress.step, flag)
        progress.step += 1
        self._judge(outcome.loss, outcome.norm, outcome.taken)
        progress.images += self.recipe.batch_size
        lr = max(group["lr"] for group in parts.optimizer.param_groups)
        self.monitor.step(outcome.loss, lr, outcome.norm)
        now = time.perf_counter()
        progress.training_seconds, self.mark = progress.training_seconds + now - self.mark, now
        if outcome.flag == _TOO_BAD:
            self.problems.gather()
            self.problems.check()
        if outcome.flag == _STOP:
            self._stop()
        if self.recipe.save_steps and progress.step % self.recipe.save_steps == 0:
            self._save_state()

    def _stop(self) -> NoReturn:
        """End the run on request, with its state saved."""
        self._save_state()
        raise self._stopped()

    def _stopped(self) -> Interrupted:
        return Interrupted(f"stopped at step {self.progress.step}, saved in {self.output}; go on with --resume auto")

    def _judge(self, loss: float, norm: float, taken: bool) -> None:
        """Record the loss of a step, or count it as skipped."""
        if taken:
            self.skipped_in_a_row = 0
            self.progress.loss_sum += loss
            self.progress.loss_count += 1
            return
        self.progress.skipped += 1
        self.skipped_in_a_row += 1
        self.say(f"step {self.progress.step}: loss {loss:.4g}, gradient {norm:.4g}; the step was skipped")
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise ConfigError(
                f"{MOST_SKIPPED} steps in a row had no finite loss or gradient; the last good checkpoint is kept in "
                f"{self.output}. A smaller lr, clip_grad or amp: bf16 in place of fp16 may help."
            )

    def _validate(self) -> Metrics:
        parts = self.parts
        model = parts.ema.module if parts.ema is not None else parts.backbone
        if parts.accelerator.num_processes > 1:
            for module in {parts.backbone, model}:
                distribute_bn(module, parts.accelerator.num_processes, reduce=True)
        self._save_state()  # a validation may take long
        metrics, notes = evaluate(model, self._to_validate(), len(parts.train.classes), parts.accelerator)
        self.problems.add(notes)
        self.problems.gather()
        self.problems.check()
        if not metrics.result()["images"]:
            self.problems.none_readable(f"{self.recipe.data}: none of the validation images can be read")
        return metrics

    def _to_validate(self) -> Iterator[Batch]:
        """The batches of a validation, until any process is asked to stop: everything is saved by then."""
        for batch in self._read(self.parts.validation_loader):
            if any_of(self.interrupt.asked, self.parts.accelerator):
                raise self._stopped()
            yield batch

    def _close_epoch(self, metrics: Metrics) -> None:
        """Write a row of the history and the checkpoints."""
        progress, found = self.progress, metrics.result()
        loss = progress.loss_sum / progress.loss_count if progress.loss_count else math.nan
        epoch = len(progress.history) + 1
        lr = self.parts.optimizer.param_groups[0]["lr"]
        progress.history.append({"epoch": epoch, "train_loss": loss, "lr": lr, **found})
        better = found["top1"] > progress.best
        if better:
            progress.best, progress.best_epoch = found["top1"], epoch
        self.monitor.epoch(progress.history[-1])
        names = [LAST, BEST] if better else [LAST]
        self.claim.check()
        save_weights(self.parts, [self.output / name for name in names], progress.history[-1])
        self._save_state()

    def _save_state(self) -> None:
        now = time.perf_counter()
        self.progress.seconds, self.since = self.progress.seconds + now - self.since, now
        self.claim.check()
        save_state(self.parts, self.output / "state", self.progress)
        if self.main:
            self.problems.write()
            write_history(self.progress.history, self.output / "history.csv")
        self.parts.accelerator.wait_for_everyone()

    def finish(self) -> dict[str, Any]:
        """Write the report on the best saved checkpoint."""
        self.claim.check()
        return write_report(self.parts, self.progress, self.output / BEST, self._to_validate(), self.problems)
