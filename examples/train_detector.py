"""A detector learns shapes: torchvision's Faster R-CNN over a backbone whose stages are of three families.

`python examples/train_detector.py` trains from random weights for a few minutes on two cores, prints what was learned,
draws docs/detector.png and ends with status 1 if AP50 on held-out images is below the bar.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from shapes import COLOURS, KINDS, Shapes, save_picture
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.transforms.functional import resize
from torchvision.utils import draw_bounding_boxes

from zoo.vision import torchvision_backbone

HERE = Path(__file__).parent
SIZE, BATCH, STEPS, RATE, BAR = 96, 8, 800, 1e-3, 0.5


def build() -> nn.Module:
    """Faster R-CNN for images of SIZE pixels, with an anchor of one size and three shapes a level."""
    backbone = torchvision_backbone(str(HERE / "detector.yaml"), out_channels=64)
    sizes = tuple((SIZE // n,) for n in (16, 8, 4, 2, 1))
    return FasterRCNN(
        backbone,
        num_classes=1 + len(KINDS),
        min_size=SIZE,
        max_size=SIZE,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        rpn_pre_nms_top_n_train=300,
        rpn_post_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=100,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=64,
        box_detections_per_img=20,
    )


def batches(length: int, held_out: bool = False) -> DataLoader:
    """(images, targets) as torchvision's detectors take them."""
    return DataLoader(Shapes(length, SIZE, held_out), BATCH, collate_fn=lambda items: tuple(zip(*items, strict=True)))


def train(model: nn.Module, steps: int) -> None:
    """AdamW under a one-cycle schedule."""
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.1)
    for step, (images, targets) in enumerate(batches(steps * BATCH)):
        loss = sum(model(images, targets).values())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step:5}  loss {loss.item():.3f}", flush=True)


@torch.inference_mode()
def evaluate(model: nn.Module, length: int) -> dict[str, float]:
    """Box AP at an IoU of 0.5 on held-out images: their mean, then of each kind."""
    metric = MeanAveragePrecision(iou_thresholds=[0.5], class_metrics=True)
    for images, targets in batches(length, held_out=True):
        metric.update(model(images), targets)
    found = metric.compute()
    kinds = dict(zip(KINDS, found["map_per_class"].tolist(), strict=True))
    return {"mean": float(found["map_50"])} | kinds


def drawn(image: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The image three times as large, with its boxes in the colours of their kinds."""
    colours = [COLOURS[label - 1] for label in labels.tolist()]
    return draw_bounding_boxes(resize(image, [3 * SIZE, 3 * SIZE]), 3 * boxes, colors=colours, width=4)


@torch.inference_mode()
def draw(model: nn.Module, path: Path) -> None:
    """What the model is surer of than not on eight held-out images, below the truth."""
    items = [Shapes(8, SIZE, held_out=True)[i] for i in range(8)]
    truth = [drawn(image, target["boxes"], target["labels"]) for image, target in items]
    sure = [{key: value[out["scores"] > 0.5] for key, value in out.items()} for out in model([i for i, _ in items])]
    found = [drawn(image, out["boxes"], out["labels"]) for (image, _), out in zip(items, sure, strict=True)]
    save_picture(path, truth, found)


def main() -> int:
    """Train, evaluate, draw; the exit status."""
    torch.set_num_threads(1)  # small images: more threads mostly wait, and one gives the same run everywhere
    torch.manual_seed(0)
    start = time.time()
    model = build()
    train(model.train(), STEPS)
    scores = evaluate(model.eval(), 200)
    print(f"\nAP50 on 200 held-out images after {(time.time() - start) / 60:.1f} minutes, to be above {BAR}")
    for kind, score in scores.items():
        print(f"{kind:10} {score:.3f}")
    draw(model, HERE.parent / "docs" / "detector.png")
    return int(scores["mean"] <= BAR)


if __name__ == "__main__":
    sys.exit(main())
