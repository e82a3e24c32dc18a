"""Validation metrics as sums over images, so that processes can add up theirs without rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

BINS = 15
"""Number of confidence bins for the calibration error."""


class Metrics:
    """Sums over images of a classifier of `classes` classes.

    Attributes:
        confusion: (classes, classes) images by class and by prediction.
        sums: loss, images with their class in the top five, images with ReaL labels, correct ones among these.
        bins: (3, BINS) images, right ones, and confidence, by confidence.
    """

    def __init__(self, classes: int, device: torch.device, real: Sequence[Sequence[int]] | None = None) -> None:
        self.real = real
        self.confusion = torch.zeros(classes, classes, dtype=torch.float64, device=device)
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)

    def add(self, logits: torch.Tensor, targets: torch.Tensor, positions: torch.Tensor) -> None:
        """Count a batch: log-probabilities or logits (B, classes), classes (B) that are negative for missing images."""
        kept = targets >= 0
        log, targets, positions = logits[kept].double().log_softmax(1), targets[kept], positions[kept]
        if not len(targets):
            return
        top = log.topk(min(5, log.shape[1]), dim=1)
        guess, right = top.indices[:, 0], top.indices[:, 0] == targets
        self.confusion.view(-1).index_add_(0, targets * log.shape[1] + guess, torch.ones_like(log[:, 0]))
        self.sums[0] += F.nll_loss(log, targets, reduction="sum")
        self.sums[1] += (top.indices == targets[:, None]).any(1).sum()
        confidence = top.values[:, 0].exp()
        chosen = (confidence * BINS).nan_to_num().long().clamp(0, BINS - 1)
        for row, values in zip(self.bins, (torch.ones_like(confidence), right.double(), confidence), strict=True):
            row.index_add_(0, chosen, values)
        if self.real is not None:
            self._add_real(guess.tolist(), [self.real[position] for position in positions.tolist()])

    def _add_real(self, guesses: list[int], allowed: list[Sequence[int]]) -> None:
        self.sums[2] += sum(bool(labels) for labels in allowed)
        self.sums[3] += sum(guess in labels for guess, labels in zip(guesses, allowed, strict=True))

    def tensors(self) -> list[torch.Tensor]:
        """The tensors that processes sum up, in place."""
        return [self.confusion, self.sums, self.bins]

    def result(self) -> dict[str, Any]:
        """top1, top5 and real in percent, loss, calibration_error 0 to 1, and images."""
        count = self.confusion.sum().item()
        most = max(count, 1)
        _, right, confidence = self.bins
        found = {
            "top1": 100 * self.confusion.diagonal().sum().item() / most,
            "top5": 100 * self.sums[1].item() / most,
            "loss": self.sums[0].item() / most,
            "calibration_error": ((right - confidence).abs().sum() / most).item(),
            "images": int(count),
        }
        if self.real is not None:
            found["real"] = 100 * self.sums[3].item() / max(self.sums[2].item(), 1)
        return found

    def per_class(self) -> list[float | None]:
        """The top-1 of each class in percent; None for a class without images."""
        counts, right = self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist()
        return [100 * r / n if n else None for r, n in zip(right, counts, strict=True)]
