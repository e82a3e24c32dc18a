"""Validation of a classifier by one or several processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from torch import nn

from zoo.training.data.loading import Batch, Note
from zoo.training.metrics import Metrics


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    classes: int,
    accelerator: Accelerator,
    *,
    tta: bool = False,
    real: Sequence[Sequence[int]] | None = None,
) -> tuple[Metrics, list[Note]]:
    """Evaluate every image exactly once over all processes.

    Args:
        model: maps images (B, 3, H, W) to logits; its mode is restored afterwards.
        batches: of this process, filled up with `NO_IMAGE`.
        tta: average the probabilities of an image and its mirror image.
        real: for each position, the classes that ReaL allows.

    Returns:
        The sums over all processes, and the notes of this one.
    """
    metrics, notes, training = Metrics(classes, accelerator.device, real), [], model.training
    model.eval()
    for batch in batches:
        images, targets = batch.images.to(accelerator.device, non_blocking=True), batch.targets.to(accelerator.device)
        with accelerator.autocast():
            logits = model(images)
            if tta:
                mirrored = model(images.flip(3))
                logits = (logits.float().softmax(1) + mirrored.float().softmax(1)).log()  # the softmax halves it
        metrics.add(logits, targets, batch.positions)
        notes.extend(batch.notes)
    model.train(training)
    if accelerator.num_processes > 1:
        for sums in metrics.tensors():
            torch.distributed.all_reduce(sums)
    return metrics, notes
