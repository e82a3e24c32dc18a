"""The handwritten digits that come with scikit-learn, as an ImageFolder: real data without a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from zoo.training.needs import needs

TEST_EVERY = 5
SEED = 0


def write_digits(folder: Path) -> Path:
    """The 1797 digits (Alpaydin and Kaynak, 1998) as 8 x 8 PNGs under `train/0` to `validation/9`.

    In each class, in a fixed random order, every fifth image is for validation: 1433 and 364 images.

    Raises:
        ConfigError: without scikit-learn.
    """
    digits = needs("sklearn.datasets", "scikit-learn").load_digits()
    pictures = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.RandomState(SEED).permutation(len(pictures))
    for label in range(10):
        for i, index in enumerate(order[digits.target[order] == label]):
            split = "validation" if i % TEST_EVERY == 0 else "train"
            path = folder / split / str(label) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures[index]).save(path)
    return folder
