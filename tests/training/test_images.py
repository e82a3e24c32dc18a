"""Whatever people have in their folders: read, or passed over and named; only too much of it ends a run."""

from __future__ import annotations

import csv
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.training.conftest import write_images
from zoo.errors import ConfigError
from zoo.training.engine import train
from zoo.training.recipe import Recipe
from zoo.vision.images import ImageError, decode


def _photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8))


def _truncated(path: Path) -> None:
    _photo().save(path)
    path.write_bytes(path.read_bytes()[:-200])


def _damaged(path: Path) -> None:
    _photo().save(path, "PNG")
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)


def _bomb(path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def _turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _photo().save(path, exif=exif)


def _bad_metadata(path: Path) -> None:
    """A photo whose EXIF data are cut off; its pixels are whole."""
    _turned(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Exif\x00\x00MM\x00*\x00\x00\x00\x08", b"Exif\x00\x00MM\x00*\xff\xff\xff\x08"))


UNREADABLE: dict[str, Callable[[Path], None]] = {
    "empty.jpg": lambda path: path.write_bytes(b""),
    "text.jpg": lambda path: path.write_text("not a picture"),
    "truncated.jpg": _truncated,
    "damaged.png": _damaged,
    "bomb.png": _bomb,
    "zeros.jpg": lambda path: path.write_bytes(bytes(5000)),
    "link.jpg": lambda path: path.symlink_to("nowhere.jpg"),
    "empty.webp": lambda path: path.write_bytes(b""),
}
UNUSUAL: dict[str, Callable[[Path], None]] = {
    "cmyk.jpg": lambda path: _photo().convert("CMYK").save(path),
    "grey16.png": lambda path: Image.fromarray(np.full((9, 9), 40000, np.uint16)).save(path),
    "animated.png": lambda path: _photo().save(path, save_all=True, append_images=[_photo().rotate(90)]),
    "animated.gif": lambda path: _photo().save(path, save_all=True, append_images=[_photo().rotate(90)]),
    "turned.jpg": _turned,
    "transparent.png": lambda path: _photo().convert("RGBA").save(path),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable(tmp_path: Path, name: str) -> None:
    UNREADABLE[name](tmp_path / name)
    with pytest.raises((ImageError, OSError)), (tmp_path / name).open("rb") as file:
        decode(file)


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual(tmp_path: Path, name: str) -> None:
    UNUSUAL[name](tmp_path / name)
    with (tmp_path / name).open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("error")
        image, notes = decode(file)
    assert image.mode == "RGB"
    assert len(notes) == 1
    assert image.size == {"turned.jpg": (24, 32), "grey16.png": (9, 9)}.get(name, (32, 24))
    assert name != "grey16.png" or image.getpixel((4, 4)) == (156, 156, 156)


def test_damaged_metadata_are_no_damaged_picture(tmp_path: Path) -> None:
    _bad_metadata(tmp_path / "photo.jpg")
    with (tmp_path / "photo.jpg").open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("error")
        image, notes = decode(file)
    assert image.size == (32, 24)
    assert not notes


def test_an_image_that_cannot_be_transformed_is_passed_over(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, posterize = [], ImageOps.posterize

    def fails(image: Image.Image, bits: int) -> Image.Image:
        if not odd:
            odd.append(image)
            raise ValueError("bits must be between 1 and 8")
        return posterize(image, bits)

    monkeypatch.setattr(ImageOps, "posterize", fails)
    summary = train(tiny(auto_augment="rand-m5-n15-inc1", workers=0, epochs=1), tmp_path / "run")
    assert summary["unreadable_images"] == 1
    assert "cannot be transformed: bits must be" in (tmp_path / "run" / "images.csv").read_text()


@pytest.mark.slow
def test_two_hundred_bad_files_in_a_thousand(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    """The run ends, read by two workers, and its report names every one of them."""
    root = write_images(tmp_path / "many", count=267)
    kinds, expected = {**UNREADABLE, **UNUSUAL}, {}
    for i in range(200):
        kind = list(kinds)[i % len(kinds)]
        path = root / ("red", "green", "blue")[i % 3] / f"{i}_{kind}"
        kinds[kind](path)
        expected[str(path)] = "no" if kind in UNREADABLE else "yes"
    summary = train(tiny(data=str(root), epochs=1, batch_size=100, workers=2), tmp_path / "run")
    with (tmp_path / "run" / "images.csv").open(newline="") as file:
        found = {row["file"]: row["readable"] for row in csv.DictReader(file)}
    assert found == expected
    assert summary["unreadable_images"] == sum(answer == "no" for answer in expected.values())
    assert summary["training_images"] + summary["validation_images"] <= 1001


def test_too_many_bad_files_stop_a_run(tiny: Callable[..., Recipe], folder: Path, tmp_path: Path) -> None:
    for path in sorted((folder / "red").iterdir())[:12]:
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"of 48 images cannot be read.*images.csv.*(\n.*png: an empty file)+"):
        train(tiny(workers=1), tmp_path / "run")
    assert "an empty file" in (tmp_path / "run" / "images.csv").read_text()
    for path in folder.glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="none of the training images can be read"):
        train(tiny(max_bad_share=1.0), tmp_path / "none")
