"""Draws the pictures of docs/explain with `zoo explain`, from photographs that scikit-learn and matplotlib ship.

python scripts/explain_pictures.py [NAME ...]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import sklearn.datasets
from matplotlib.cbook import get_sample_data
from PIL import Image

OUT = Path(__file__).parents[1] / "docs" / "explain"
PHOTOS = Path(sklearn.datasets.__file__).parent / "images"
CHINA, FLOWER = str(PHOTOS / "china.jpg"), str(PHOTOS / "flower.jpg")
HOPPER = str(get_sample_data("grace_hopper.jpg", asfileobj=False))
LARGEST = 400_000
"""Bytes of a picture."""

PICTURES = {
    "maxvit": [CHINA, "--model", "maxvit_tiny_tf_224", "--point", "290,180"],
    "dinat": [FLOWER, "--model", "dinat_tiny", "--point", "330,200"],
    "biformer": [CHINA, "--model", "biformer_tiny", "--point", "290,180"],
    "davit": [CHINA, "--model", "davit_tiny", "--point", "290,180"],
    "litv2": [FLOWER, "--model", "litv2_s", "--point", "330,200"],
    "crossformer": [CHINA, "--model", "crossformer_small", "--point", "290,180"],
    "transnext": [FLOWER, "--model", "transnext_micro", "--point", "330,200"],
    "rollout": [CHINA, "--model", "nat_tiny", "--point", "290,180", "--method", "rollout"],
    "receptive_field": [CHINA, "--model", "crossformer_small", "--point", "290,180", "--method", "receptive-field"],
    "grad_cam": [HOPPER, "--model", "maxvit_tiny_tf_224", "--method", "grad-cam", "--label", "652"],
}


def draw(name: str) -> None:
    """One picture, with fewer pixels and 256 colours where it would be large."""
    path = OUT / f"{name}.png"
    subprocess.run([sys.executable, "-m", "zoo", "explain", *PICTURES[name], "-o", str(path)], check=True)
    with Image.open(path) as picture:
        whole = picture.convert("RGB")
    whole.save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        whole.thumbnail((1800, 1800), Image.Resampling.LANCZOS)
        _in_256_colours(whole).save(path, optimize=True)


def _in_256_colours(picture: Image.Image) -> Image.Image:
    """Dithered, so that colour bars stay smooth, but on plain white."""
    small = picture.quantize(palette=picture.quantize(256, kmeans=1), dither=Image.Dither.FLOYDSTEINBERG)
    palette, background = small.getpalette(), small.getpixel((0, 0))
    palette[3 * background : 3 * background + 3] = [255] * 3
    small.putpalette(palette)
    return small


if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        draw(name)
