"""`zoo validate`: evaluates a classifier exactly with any number of processes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import nn

from zoo.errors import ConfigError
from zoo.models.load import backbone_of
from zoo.models.optimize import optimize_for
from zoo.training.data.classes import imagenet_names
from zoo.training.data.loading import validation_loader
from zoo.training.data.splits import Split, class_names, open_validation
from zoo.training.evaluate import evaluate
from zoo.training.problems import Problems
from zoo.training.setup import make_accelerator
from zoo.vision.images import input_config
from zoo.vision.predict import load_classifier


@dataclass(frozen=True)
class Validation:
    """What to validate on, and how.

    Attributes:
        data, split, classes: as in a recipe.
        batch_size: images that a process runs at once.
        workers: image reading processes per process.
        amp: "no", "bf16" or "fp16".
        tta: average over an image and its mirror image.
        real: also count with the ReaL labels of ImageNet, https://arxiv.org/abs/2006.07159.
        report: path of the list of unreadable and unusual files; None for no list.
    """

    data: str
    split: str | None = None
    classes: str | None = None
    batch_size: int = 64
    workers: int = 2
    amp: str = "no"
    tta: bool = False
    real: bool = False
    report: Path | None = None


def validate(task: Validation, name: str | None, checkpoint: str | None, pretrained: bool = False) -> dict[str, Any]:
    """Accuracy of a classifier; name, checkpoint and pretrained as for `load_classifier`.

    Returns: top1 and top5 in percent, loss, calibration_error, images, unreadable_images, images_per_second, per_class;
    real in percent if requested.

    Raises:
        ConfigError, CheckpointError: if model, weights or data cannot be obtained or do not match.
    """
    accelerator, _ = make_accelerator(task.amp)
    model = load_classifier(name, checkpoint, pretrained).to(accelerator.device)
    classes = _classes(model, task)
    config = input_config(model)
    split = open_validation(task.data, task.split, task.classes, classes, config["input_size"][0])
    batches = validation_loader(split, config, task.batch_size, task.workers, accelerator)
    if task.amp == "no":
        model = optimize_for(len(split), model, min(task.batch_size, len(split)))
    real = _real_labels(split, classes) if task.real else None
    start = time.perf_counter()
    metrics, notes = evaluate(model, batches, len(classes), accelerator, tta=task.tta, real=real)
    problems = Problems(task.report, len(split), 1.0)
    problems.add(notes)
    problems.gather()
    if accelerator.is_main_process:
        problems.write()
    if not metrics.result()["images"]:
        problems.none_readable(f"{task.data}: none of the {len(split)} images can be read")
    speed = len(split) / (time.perf_counter() - start)
    about = {"unreadable_images": len(problems.unreadable()), "images_per_second": speed}
    found = {key: value for key, value in zip(classes, metrics.per_class(), strict=True) if value is not None}
    return {**metrics.result(), **about, "per_class": found}


def _classes(model: nn.Module, task: Validation) -> tuple[str, ...]:
    """Names of a model's outputs: its own, ImageNet's, or those of the data if the number of classes matches."""
    backbone = backbone_of(model)
    count = backbone.num_classes
    names = tuple(backbone.pretrained_cfg.get("label_names") or ()) or imagenet_names(count)
    if names is None:
        names = class_names(task.data, task.split, backbone.in_chans)
        if len(names) != count:
            raise ConfigError(f"{task.data}: has {len(names)} classes, the model {count} and no names for them")
    if len(names) != count:
        raise ConfigError(f"the model has {count} classes, and {len(names)} names for them")
    return names


def _real_labels(split: Split, classes: tuple[str, ...]) -> list[list[int]]:
    """For each image, the classes that ReaL allows."""
    if classes != imagenet_names(1000):
        raise ConfigError("ReaL labels are for the 1000 classes of ImageNet, which this model has not")
    allowed = json.loads((files("timm.data") / "_info/imagenet_real_labels.json").read_text(encoding="utf-8"))
    by_file = {f"ILSVRC2012_val_{i + 1:08d}": labels for i, labels in enumerate(allowed)}
    names = [Path(split.name(position)).stem for position in range(len(split))]
    if strange := [name for name in names if name not in by_file]:
        raise ConfigError(f"ReaL has no labels for {strange[0]}, expected images of ImageNet's validation set")
    return [by_file[name] for name in names]
