"""A segmenter learns shapes: the U-Net of segmentation_models_pytorch over one of our encoders.

`python examples/train_segmenter.py` trains from random weights for a few minutes on two cores, prints what was learned,
draws docs/segmenter.png and ends with status 1 if the mean IoU on held-out images is below the bar.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from shapes import COLOURS, KINDS, Shapes, save_picture
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision.utils import draw_segmentation_masks

import zoo.timm_models  # noqa: F401 - registers the encoders

SIZE, BATCH, STEPS, RATE, BAR = 96, 8, 1400, 2e-3, 0.6
CLASSES = ("background", *KINDS)


def build() -> nn.Module:
    """A U-Net over MaxViT with fewer blocks: keyword arguments of an encoder are configuration keys."""
    return smp.Unet(
        "tu-zoo_maxvit_rmlp_pico_rw_256",
        encoder_weights=None,
        decoder_channels=(128, 64, 32, 16, 16),
        classes=len(CLASSES),
        **{"stages.0.depth": 1, "stages.1.depth": 1, "stages.2.depth": 2, "stages.3.depth": 1},
    )


def batches(length: int, held_out: bool = False) -> DataLoader:
    """Images (B, 3, SIZE, SIZE) and the class of each pixel (B, SIZE, SIZE), 0 for none."""

    def collate(items: list) -> tuple[torch.Tensor, torch.Tensor]:
        classes = [(target["masks"] * target["labels"][:, None, None]).amax(dim=0) for _, target in items]
        return torch.stack([image for image, _ in items]), torch.stack(classes)

    return DataLoader(Shapes(length, SIZE, held_out), BATCH, collate_fn=collate)


def train(model: nn.Module, steps: int) -> None:
    """AdamW under a one-cycle schedule; cross entropy and Dice loss."""
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.1)
    dice = smp.losses.DiceLoss("multiclass")
    for step, (images, classes) in enumerate(batches(steps * BATCH)):
        scores = model(images)
        loss = cross_entropy(scores, classes) + dice(scores, classes)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step:5}  loss {loss.item():.3f}", flush=True)


@torch.inference_mode()
def evaluate(model: nn.Module, length: int) -> dict[str, float]:
    """Intersection over union on held-out images: the mean over the shapes, without the background, then of each."""
    metric = MulticlassJaccardIndex(len(CLASSES), average="none")
    for images, classes in batches(length, held_out=True):
        metric.update(model(images).argmax(dim=1), classes)
    found = metric.compute()
    return {"mean": float(found[1:].mean())} | dict(zip(CLASSES, found.tolist(), strict=True))


def drawn(image: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The image under the colours of its classes."""
    masks = torch.stack([classes == kind + 1 for kind in range(len(KINDS))])
    return draw_segmentation_masks(image, masks, alpha=0.7, colors=list(COLOURS))


@torch.inference_mode()
def draw(model: nn.Module, path: Path) -> None:
    """The classes of eight held-out images, below the truth."""
    images, classes = next(iter(batches(BATCH, held_out=True)))
    found = model(images).argmax(dim=1)
    rows = [[drawn(*pair) for pair in zip(images, maps, strict=True)] for maps in (classes, found)]
    save_picture(path, *rows)


def main() -> int:
    """Train, evaluate, draw; the exit status."""
    torch.set_num_threads(1)  # small images: more threads mostly wait, and one gives the same run everywhere
    torch.manual_seed(0)
    start = time.time()
    model = build()
    train(model.train(), STEPS)
    scores = evaluate(model.eval(), 200)
    minutes = (time.time() - start) / 60
    print(f"\nIoU on 200 held-out images after {minutes:.1f} minutes, the mean of the shapes to be above {BAR}")
    for name, score in scores.items():
        print(f"{name:10} {score:.3f}")
    draw(model, Path(__file__).parents[1] / "docs" / "segmenter.png")
    return int(scores["mean"] <= BAR)


if __name__ == "__main__":
    sys.exit(main())
