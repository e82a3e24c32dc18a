"""Times `zoo train` against timm's own training script, in turn, on the same images with the same model and settings.

    python scripts/bench_training.py ../pytorch-image-models/train.py
    python scripts/bench_training.py ../pytorch-image-models/train.py --model maxvit_tiny_tf_224 --size 128 --rounds 5

The script of timm's repository (https://github.com/huggingface/pytorch-image-models) is not in its package: check out
the release that is installed. Images are crops of photographs that scikit-learn ships. Both read them with two workers,
crop, flip and jitter them, and take steps of AdamW; validation and start are not counted. The last line is how fast the
workers alone are: faster than the model, if reading images is not what a step waits for.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import sklearn.datasets
import typer
from PIL import Image

EPOCHS = 2


def main(
    timm_script: Annotated[Path, typer.Argument(help="train.py of timm's repository.")],
    model: Annotated[str, typer.Option(help="A name that both know.")] = "davit_tiny",
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 96,
    batch: Annotated[int, typer.Option(min=1)] = 16,
    images: Annotated[int, typer.Option(min=32, help="Of an epoch.")] = 160,
    workers: Annotated[int, typer.Option(min=0)] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Print images per second of both, the median ratio, and the rate of the data pipeline."""
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_crops(root / "images", images, 2 * size)
        ratios = []
        for i in range(rounds):
            theirs = timm_rate(timm_script, root / "images", root / f"timm{i}", model, size, batch, workers)
            ours = zoo_rate(root / "images", root / f"zoo{i}", model, size, batch, workers)
            ratios.append(ours / theirs)
            print(
                f"round {i + 1}: zoo {ours:.1f} images/s, timm {theirs:.1f} images/s, ratio {ratios[-1]:.2f}",
                flush=True,
            )
        print(f"median ratio {statistics.median(ratios):.2f}")
        print(f"{workers} workers alone: {pipeline_rate(root / 'images', size, batch, workers):.0f} images/s")


def write_crops(root: Path, count: int, side: int) -> None:
    """`count` JPEG crops for training and 32 for validation, of two classes."""
    generator, folder = np.random.default_rng(0), Path(sklearn.datasets.__file__).parent / "images"
    for name in ("china", "flower"):
        picture = Image.open(folder / f"{name}.jpg")
        for split, number in (("train", count // 2), ("validation", 16)):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                x, y = (int(generator.integers(0, length - side)) for length in picture.size)
                picture.crop((x, y, x + side, y + side)).save(root / split / name / f"{i}.jpg")


def zoo_rate(data: Path, output: Path, model: str, size: int, batch: int, workers: int) -> float:
    """Images per second of all steps, from the summary of the run."""
    settings = [
        "hflip=0.5",
        "color_jitter=0.4",
        "auto_augment=null",
        "random_erasing=0",
        "layer_decay=null",
        "log_every=1",
    ]
    options = ["--img-size", size, "--batch-size", batch, "--epochs", EPOCHS, "--workers", workers, "--lr", 1e-4]
    chosen = [part for text in [*settings, "warmup_epochs=0", "clip_grad=null"] for part in ("--set", text)]
    command = [
        sys.executable,
        "-m",
        "zoo",
        "train",
        "finetune",
        "-m",
        model,
        "-d",
        data,
        "-o",
        output,
        *options,
        *chosen,
    ]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return json.loads((output / "summary.json").read_text())["images_per_second"]


def timm_rate(script: Path, data: Path, output: Path, model: str, size: int, batch: int, workers: int) -> float:
    """Images per second of all steps, from the times that the script logs."""
    options = [
        "--num-classes",
        2,
        "--img-size",
        size,
        "-b",
        batch,
        "--epochs",
        EPOCHS,
        "-j",
        workers,
        "--device",
        "cpu",
    ]
    options += ["--opt", "adamw", "--lr", 1e-4, "--weight-decay", 0.05, "--smoothing", 0.1, "--log-interval", 1]
    options += ["--warmup-epochs", 0, "--output", output, "--hflip", 0.5, "--color-jitter", 0.4, "--drop-path", 0.1]
    command = [sys.executable, script, "--data-dir", data, "--model", model, *options]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    log = done.stdout + done.stderr
    seconds = [float(found) for found in re.findall(r"Train: .*?Time: +([\d.]+)s", log)]
    return batch * len(seconds) / sum(seconds)


def pipeline_rate(data: Path, size: int, batch: int, workers: int) -> float:
    """Images per second of the training loader, with nothing behind it."""
    from zoo.training.data import open_splits
    from zoo.training.loading import ImageSet, TrainingOrder, loader, training_transform
    from zoo.training.recipe import load_recipe

    changes = {"model": "davit_tiny", "data": str(data), "auto_augment": None, "random_erasing": 0.0}
    recipe = load_recipe("finetune", changes)
    config = {"input_size": (3, size, size), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    train, _ = open_splits(recipe)
    order = TrainingOrder(len(train), batch, 0)
    batches = loader(ImageSet(train, training_transform(recipe, config), (size, size), 0), order, workers, False)
    list(batches)  # starts the workers
    start = time.perf_counter()
    count = sum(len(some.images) for order.epoch in (1, 2) for some in batches)
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    typer.run(main)
