"""One step of the optimiser: micro-batches, mixed precision, clipping, and error handling."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from zoo.errors import ConfigError
from zoo.training.data.loading import Batch
from zoo.training.norms import batch_norms, norms_explained
from zoo.training.randomness import seed_all
from zoo.training.recipe import pieces
from zoo.training.setup import Parts


@dataclass(frozen=True)
class Outcome:
    """The result of a step, equal on all processes: loss, gradient norm, and the highest flag of any process."""

    loss: float
    norm: float
    flag: int
    taken: bool


class Stepper:
    """Runs optimiser steps on `parts`.

    Attributes:
        micro: images that a process runs at once.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.micro = max(pieces(parts.recipe, parts.accelerator.num_processes))
        self.statistics = [buffer for norm in batch_norms(parts.backbone) for buffer in norm.buffers(recurse=False)]

    def __call__(self, batch: Batch, step: int, flag: int = 0) -> Outcome:
        """Run one step on the batch of this process.

        Args:
            step: its number, which determines its random numbers.
            flag: sent to all processes.

        Raises:
            ConfigError: if not even one image fits into memory.
        """
        parts, accelerator = self.parts, self.parts.accelerator
        memory_format = torch.channels_last if parts.recipe.channels_last else torch.contiguous_format
        images = batch.images.to(accelerator.device, non_blocking=True, memory_format=memory_format)
        targets = batch.targets.to(accelerator.device, non_blocking=True)
        seed_all(parts.recipe.seed, step, accelerator.process_index)
        if parts.mixup is not None:
            images, targets = parts.mixup(images, targets)
        before = [buffer.clone() for buffer in self.statistics]
        loss = self._backward(images, targets, step)
        norm = self._clip()
        told = torch.stack([loss.double(), torch.tensor(float(flag), dtype=torch.float64, device=loss.device)])
        if accelerator.num_processes > 1:
            gathered = accelerator.gather(told[None])
            told = torch.stack([gathered[:, 0].mean(), gathered[:, 1].max()])
        mean, highest = told.tolist()
        overflow = accelerator.scaler is not None  # it skips steps by itself
        taken = bool(torch.isfinite(told[0])) and (overflow or bool(torch.isfinite(norm)))
        self._take(step) if taken else self._skip(before)
        parts.optimizer.zero_grad()
        return Outcome(mean, norm.item(), int(highest), taken)

    def _take(self, step: int) -> None:
        self.parts.optimizer.step()
        if self.parts.ema is not None:
            self.parts.ema.update(self.parts.backbone, step)

    def _skip(self, before: list[torch.Tensor]) -> None:
        """Restore the state before the step, including the statistics of batch norms."""
        for buffer, value in zip(self.statistics, before, strict=True):
            buffer.copy_(value)
        if self.parts.accelerator.scaler is not None:  # it has unscaled the gradients and would refuse to do so again
            self.parts.accelerator.scaler.update()

    def _backward(self, images: torch.Tensor, targets: torch.Tensor, step: int) -> torch.Tensor:
        """Compute the mean loss over the batch of this process and its gradients, in smaller parts if necessary."""
        while True:
            try:
                with norms_explained():  # halving the micro-batch may result in single images
                    return self._micro_batches(images, targets)
            except RuntimeError as error:
                self._halve(error)
                self.parts.optimizer.zero_grad()
                seed_all(self.parts.recipe.seed, step, self.parts.accelerator.process_index)

    def _micro_batches(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        parts, total = self.parts, torch.zeros((), device=images.device)
        parted = list(zip(images.split(self.micro), targets.split(self.micro), strict=True))
        smoothing = parts.recipe.label_smoothing if targets.ndim == 1 else 0.0
        for i, (x, y) in enumerate(parted):
            with self._sync(i == len(parted) - 1):
                with parts.accelerator.autocast():
                    logits = parts.model(x)
                loss = F.cross_entropy(logits.float(), y, reduction="sum", label_smoothing=smoothing) / len(images)
                parts.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _sync(self, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients between processes only once per step."""
        if self.parts.fsdp:
            cast(FSDPModule, self.parts.model).set_requires_gradient_sync(last)
            return nullcontext()
        return nullcontext() if last else self.parts.accelerator.no_sync(self.parts.model)

    def _clip(self) -> torch.Tensor:
        most = self.parts.recipe.clip_grad or float("inf")
        if not self.parts.fsdp:
            return torch.as_tensor(self.parts.accelerator.clip_grad_norm_(self.parts.model.parameters(), most))
        return cast(DTensor, torch.nn.utils.clip_grad_norm_(self.parts.model.parameters(), most)).full_tensor()

    def _halve(self, error: RuntimeError) -> None:
        """Run half as many images at once, if the error was lack of memory."""
        if not should_reduce_batch_size(error):
            raise error
        if self.parts.accelerator.num_processes > 1:  # the others wait for this one's gradients
            raise ConfigError(
                f"memory runs out with {self.micro} images at once: pass --set micro_batch={max(1, self.micro // 2)} "
                "or --set grad_checkpointing=true"
            ) from error
        if self.micro == 1:
            raise ConfigError("memory runs out with one image at once: pass --set grad_checkpointing=true") from error
        self.micro = (self.micro + 1) // 2
