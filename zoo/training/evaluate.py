"""Validation of a classifier, by one process or several."""

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
    """Count every image once over all processes.

    Args:
        model: images (B, 3, H, W) to logits; its mode is as before afterwards.
        batches: of this process, with `NO_IMAGE` where a batch is filled up.
        tta: average the probabilities of an image and of its mirror image.
        real: by position, the classes that ReaL allows.

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
                logits = (logits.float().softmax(1) + mirrored.float().softmax(1)).log()  # halved by the softmax
        metrics.add(logits, targets, batch.positions)
        notes.extend(batch.notes)
    model.train(training)
    if accelerator.num_processes > 1:
        for sums in metrics.tensors():
            torch.distributed.all_reduce(sums)
    return metrics, notes
