"""Times `zoo train` against timm's own training script, in turn, on the same images with the same model and settings.

    python scripts/bench training ../pytorch-image-models/train.py --csv benchmarks/training.csv
    python scripts/bench training ../pytorch-image-models/train.py --model maxvit_tiny_tf_224 --size 128 --rounds 5

The script of timm's repository (https://github.com/huggingface/pytorch-image-models) is not in its package: check out
the release that is installed. It trains timm's model and the zoo's, which separates the effect of the loop from that of
the model. Images are crops of photographs that come with scikit-learn. Both read them with two workers, crop, flip and
jitter them, and take steps of AdamW; validation and start are not counted. The last column is the speed of the workers
alone, which is higher than the model's unless steps wait for images.
"""

from __future__ import annotations

import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import timm
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from bench.measure import append, setting

EPOCHS = 2
WITH_ZOO = "import runpy, sys, zoo.timm_models; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
COLUMNS = ("zoo_rate", "timm_rate", "timm_rate_zoo_model", "ratio", "ratio_zoo_model", "pipeline_rate")


def main(
    timm_script: Annotated[Path, typer.Argument(help="train.py of timm's repository.")],
    model: Annotated[str, typer.Option(help="A name that both know.")] = "davit_tiny",
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 96,
    batch: Annotated[int, typer.Option(min=1)] = 16,
    images: Annotated[int, typer.Option(min=32, help="Of an epoch.")] = 160,
    workers: Annotated[int, typer.Option(min=0)] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="A row is appended.")] = None,
) -> None:
    """Print median images per second, median ratios of the rounds, and the rate of the workers alone."""
    rates = []
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        data = root / "images"
        write_crops(data, images, 2 * size)
        for i in range(rounds):
            common = data, root / str(i), model, size, batch, workers
            rates.append(
                (zoo_rate(*common), timm_rate(timm_script, *common), timm_rate(timm_script, *common, own=True))
            )
        alone = pipeline_rate(data, size, batch, workers)
    found = [statistics.median(column) for column in zip(*rates, strict=True)]
    found += [statistics.median(ours / row[i] for ours, *row in rates) for i in (0, 1)]
    row = dict(zip(COLUMNS, (round(value, 2) for value in (*found, alone)), strict=True))
    table = Table(*COLUMNS, title=f"{model}, {size} pixels, batch {batch}, images/s")
    table.add_row(*map(str, row.values()))
    Console().print(table)
    if csv_file is not None:
        about = {"model": model, "size": size, "batch": batch, "workers": workers}
        append(csv_file, [{**setting("cpu", timm=timm.__version__), **about, **row}])


def write_crops(root: Path, count: int, side: int) -> None:
    """`count` JPEG crops for training and 32 for validation, of two classes."""
    import sklearn.datasets  # of an extra

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
    command = f"zoo train finetune -m {model} -d {data} -o {output}/zoo --img-size {size} --batch-size {batch}"
    command += f" --epochs {EPOCHS} --workers {workers} --lr 1e-4"
    for change in ("auto_augment=null", "random_erasing=0", "layer_decay=null", "warmup_epochs=0", "clip_grad=null"):
        command += f" --set {change}"
    call(f"-m {command} --set color_jitter=0.4 --set log_every=1")
    return json.loads((output / "zoo" / "summary.json").read_text())["images_per_second"]


def timm_rate(
    script: Path, data: Path, output: Path, model: str, size: int, batch: int, workers: int, own: bool = False
) -> float:
    """Images per second of all steps, from the times that the script logs; `own` for the zoo's model."""
    command = f"-c {shlex.quote(WITH_ZOO)} {script} --model zoo_{model}" if own else f"{script} --model {model}"
    command += f" --data-dir {data} --output {output} --img-size {size} -b {batch} -j {workers}"
    command += f" --epochs {EPOCHS} --num-classes 2 --device cpu --opt adamw --lr 1e-4 --weight-decay 0.05"
    command += " --smoothing 0.1 --log-interval 1 --warmup-epochs 0 --hflip 0.5 --color-jitter 0.4 --drop-path 0.1"
    seconds = [float(found) for found in re.findall(r"Train: .*?Time: +([\d.]+)s", call(command))]
    return batch * len(seconds) / sum(seconds)


def call(arguments: str) -> str:
    """The output of Python for these arguments."""
    command = [sys.executable, *shlex.split(arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


def pipeline_rate(data: Path, size: int, batch: int, workers: int) -> float:
    """Images per second of the training loader, with nothing after it."""
    from zoo.training.data.augmentation import training_transform
    from zoo.training.data.loading import ImageSet, TrainingOrder, loader
    from zoo.training.data.splits import open_splits
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
