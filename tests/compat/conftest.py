"""Small models that tools of the field are pointed at."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zoo
from tests import golden
from tests.conftest import cut

IMAGES = golden.images(2, 64, 96)
LABELS = torch.tensor([0, 1])


@pytest.fixture
def model(small: str) -> nn.Module:
    """The quick variant of each family with a block or two a stage, without dropout of any kind, for five classes."""
    return zoo.create_model(small, num_classes=5, drop_path_rate=0.0, **cut(small)).eval()


def run(model: nn.Module) -> torch.Tensor:
    """Logits without gradients."""
    with torch.no_grad():
        return model(IMAGES)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference in standard deviations of `b`."""
    return float((a - b).abs().max() / b.std())
