"""Every form of data set gives the same images under the same classes, and what does not fit is said before a step."""

from __future__ import annotations

import io
import random
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torchvision

from tests.training.conftest import COLOURS, write_images
from zoo.config.catalog import CONFIG_DIR
from zoo.errors import ConfigError
from zoo.training.data.classes import describe, read_list
from zoo.training.data.loading import NO_IMAGE, TrainingOrder, ValidationOrder
from zoo.training.data.splits import Split, class_names, open_splits, open_validation
from zoo.training.engine import train
from zoo.training.recipe import Recipe
from zoo.vision.images import decode

Maker = Callable[..., Recipe]


def pixels(split: Split) -> dict[tuple[str, bytes], int]:
    """How often each picture stands under each class."""
    found: dict[tuple[str, bytes], int] = {}
    for position in range(len(split)):
        with split.open(position) as file:
            key = split.classes[split.targets[position]], decode(file)[0].tobytes()
        found[key] = found.get(key, 0) + 1
    return found


def everything(recipe: Recipe) -> dict[tuple[str, bytes], int]:
    return pixels(open_splits(recipe)[0]) | pixels(open_splits(recipe)[1])


def test_a_share_of_each_class_is_held_out(tiny: Maker) -> None:
    train_split, held = open_splits(tiny(val_share=0.25))
    assert np.bincount(train_split.targets).tolist() == [12, 12, 12]
    assert np.bincount(held.targets).tolist() == [4, 4, 4]
    assert not set(train_split.indices) & set(held.indices)
    assert open_splits(tiny(val_share=0.25, seed=1))[1].indices.tolist() != held.indices.tolist()


def test_tar_files_and_shards_hold_what_folders_hold(tiny: Maker, folder: Path, tmp_path: Path) -> None:
    expected = everything(tiny())
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(folder, ".")
    assert everything(tiny(data=str(tmp_path / "all.tar"))) == expected
    (tmp_path / "tars").mkdir()
    for name in COLOURS:
        with tarfile.open(tmp_path / "tars" / f"{name}.tar", "w") as archive:
            for path in (folder / name).iterdir():
                archive.add(path, path.name)
    assert everything(tiny(data=str(tmp_path / "tars"))) == expected
    write_shards(folder, tmp_path / "shards")
    assert everything(tiny(data=str(tmp_path / "shards"))) == expected


HIDDEN = (".ipynb_checkpoints", "__MACOSX", ".git")


def draw_tree(root: Path, seed: int) -> None:
    """Class folders with images at any depth, names that sort differently as text and as numbers, files of others."""
    chance, extensions = random.Random(seed), ("png", "JPG", "webp", "tiff", "txt", "csv")
    for name in chance.sample(["1", "2", "10", "b", "B", "a b", "a.b", "images"], chance.randint(2, 6)):
        for part in range(chance.randint(1, 4)):
            place = root.joinpath(name, *chance.choices(["x", "y", "cat", "10"], k=chance.randint(0, 2)))
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{part}.{chance.choice(extensions)}").touch()
            (place / f"{chance.randint(0, 20)}.png").touch()
    (root / "loose.png").touch()
    (root / "README.txt").touch()


def hide_things(root: Path) -> None:
    """Put what systems and editors leave behind into every folder."""
    for place in [path for path in root.rglob("*") if path.is_dir()] + [root]:
        (place / "._1.png").touch()
        (place / ".DS_Store").touch()
        for name in HIDDEN:
            (place / name / "deeper").mkdir(parents=True)
            (place / name / "copy.png").touch()
            (place / name / "deeper" / "copy.png").touch()


@pytest.mark.parametrize("seed", range(20))
def test_a_folder_is_what_torchvision_takes_it_for(tmp_path: Path, seed: int) -> None:
    """The same files in the same order under the same classes, with and without hidden folders and files."""
    draw_tree(tmp_path, seed)
    expected = torchvision.datasets.ImageFolder(str(tmp_path))
    for _ in range(2):
        found = open_validation(str(tmp_path), None, None, tuple(expected.classes))
        names = [found.name(i) for i in range(len(found))]
        assert list(zip(names, found.targets.tolist(), strict=True)) == expected.samples
        assert class_names(str(tmp_path)) == tuple(expected.classes)
        if not (tmp_path / ".git").exists():
            hide_things(tmp_path)


@pytest.mark.parametrize("form", ["./", "", "images/", "outer/images/"])
@pytest.mark.parametrize("seed", range(3))
def test_a_tar_file_has_the_classes_of_its_folder(tmp_path: Path, seed: int, form: str) -> None:
    draw_tree(tmp_path / "images", seed)
    (tmp_path / "images" / "loose.png").unlink()
    expected = torchvision.datasets.ImageFolder(str(tmp_path / "images"))
    hide_things(tmp_path / "images")
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "images", form or "./")
    found = open_validation(str(tmp_path / "all.tar"), None, None, tuple(expected.classes))
    inside = Counter(Path(found.name(i)).name + found.classes[found.targets[i]] for i in range(len(found)))
    assert inside == Counter(Path(path).name + expected.classes[i] for path, i in expected.samples)


def test_hidden_tar_files_and_members_are_not_there(tiny: Maker, folder: Path, tmp_path: Path) -> None:
    expected = everything(tiny())
    hide_things(folder)
    write_shards(folder, tmp_path / "shards")
    with tarfile.open(tmp_path / "shards" / "shard-0000.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("images/._00000.png"))
        archive.addfile(tarfile.TarInfo("__MACOSX/00000.png"))
    (tmp_path / "shards" / "._shard-0000.tar").write_bytes(b"AppleDouble")
    assert everything(tiny(data=str(tmp_path / "shards"))) == expected
    with pytest.raises(ConfigError, match=r"it has blue, green, red$"):
        open_splits(tiny(val_split="dev"))


def test_splits_in_one_tar_file_are_no_classes(tiny: Maker, folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(folder, "data/train")
        archive.add(folder, "data/val")
    with pytest.raises(ConfigError, match=r"holds the splits train, val .* unpack it"):
        open_splits(tiny(data=str(tmp_path / "all.tar")))


@pytest.mark.slow
def test_hugging_face_sees_what_folders_hold(tiny: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for seed, split in enumerate(("train", "validation")):
        write_images(tmp_path / "images" / split, 4, seed=seed)
    folders, hub = (open_splits(tiny(data=f"{prefix}{tmp_path / 'images'}", batch_size=6)) for prefix in ("", "hfds/"))
    for expected, found in zip(folders, hub, strict=True):
        assert pixels(found) == pixels(expected)
        assert found.classes == expected.classes
    with pytest.raises(ConfigError, match="cannot be read as a data set: Unknown split"):
        open_splits(tiny(data=f"hfds/{tmp_path / 'images'}", val_split="dev"))


def write_shards(folder: Path, root: Path) -> None:
    """WebDataset's form, in two shards, with the names of the classes beside them."""
    root.mkdir()
    paths = sorted(path for name in COLOURS for path in folder.glob(f"{name}/[0-9]*.png"))
    for shard in range(2):
        with tarfile.open(root / f"shard-{shard:04d}.tar", "w") as archive:
            for i, path in list(enumerate(paths))[shard::2]:
                label = str(list(COLOURS).index(path.parent.name)).encode()
                for suffix, data in (("png", path.read_bytes()), ("cls", label)):
                    member = tarfile.TarInfo(f"images/{i:05d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    (root / "classes.txt").write_text("\n".join(COLOURS))


def test_shards_are_streamed_by_workers(tiny: Maker, folder: Path, tmp_path: Path) -> None:
    """The index holds places, not images; a run from shards is the run from files."""
    write_shards(folder, tmp_path / "shards")
    summary = train(tiny(data=str(tmp_path / "shards"), workers=2, epochs=1), tmp_path / "run")
    assert summary["training_images"] == 42
    assert summary["per_class"].keys() == COLOURS.keys()


def test_class_lists_and_file_lists(tiny: Maker, folder: Path, tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("red # first\n\nblue\n")
    assert open_splits(tiny(classes=str(classes)))[0].classes == ("red", "blue")
    files = tmp_path / "files.txt"
    files.write_text("\n".join(f"{name}/{i:03d}.png" for name in COLOURS for i in range(5)))
    assert sum(map(len, open_splits(tiny(classes=str(files))))) == 15
    for text, message in (("pink\n", "has no class pink"), ("none.png\n", "none of the 1 files"), ("", "is empty")):
        classes.write_text(text)
        with pytest.raises(ConfigError, match=message):
            open_splits(tiny(classes=str(classes)))
    with pytest.raises(ConfigError, match="did you mean 'imagenette'"):
        read_list("imagenete")


def test_official_lists() -> None:
    sizes = {"imagenette": 10, "imagewoof": 10, "imagenet100": 100}
    assert {path.stem for path in (CONFIG_DIR / "classes").glob("*.txt")} == set(sizes)
    for name, size in sizes.items():
        assert len(words := describe(tuple(read_list(name)))) == size, words
    assert describe(tuple(read_list("imagenette")))["n03888257"] == "parachute, chute"
    assert describe(("red", "blue")) == {}


def test_what_does_not_fit_is_said_first(tiny: Maker, folder: Path, tmp_path: Path) -> None:
    def refused(message: str, **changes: object) -> None:
        with pytest.raises(ConfigError, match=message):
            train(tiny(**changes), tmp_path / "run")
        assert not (tmp_path / "run" / "run.yaml").exists()

    refused("there is no such folder", data=str(tmp_path / "none"))
    refused("has no split 'dev'; it has blue, green, red", val_split="dev")
    refused("batch_size is 1000, more than the 42", batch_size=1000)
    refused("must be even", batch_size=9, mixup=0.5)
    refused("unknown optimizer 'adamv'; did you mean 'adam", optimizer="adamv")
    refused("fp16", amp="fp16")
    refused("one process|torchrun", fsdp=True)
    (folder / "empty").mkdir()
    refused("class folders without images: empty", data=str(folder))
    write_images(tmp_path / "splits" / "train", 2)
    write_images(tmp_path / "splits" / "val", 2)
    (tmp_path / "splits" / "val" / "red").rename(tmp_path / "splits" / "val" / "rot")
    refused("not the model's: rot; those are blue, green, red", data=str(tmp_path / "splits"), batch_size=2)
    (tmp_path / "nothing").mkdir()
    refused("has no folders, expected one a class", data=str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="not the model's"):
        open_validation(str(tmp_path / "splits"), None, None, ("blue", "green"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        train(tiny(), tmp_path / "file" / "run")


def test_orders() -> None:
    order = TrainingOrder(10, 4, seed=0)
    first = [position for batch in order for _, position in batch]
    assert len(first) == 12
    assert sorted(first[:10]) == list(range(10))
    order.start = 1
    assert [position for batch in order for _, position in batch] == first[4:]
    order.epoch, order.start = 1, 0
    assert [position for batch in order for _, position in batch] != first
    halves = [list(TrainingOrder(10, 4, 0, rank, 2)) for rank in (0, 1)]
    assert [p for pair in zip(*halves, strict=True) for batch in pair for _, p in batch] == first
    own = [[p for batch in ValidationOrder(7, 3, rank, 2) for _, p in batch] for rank in (0, 1)]
    assert sorted(own[0] + own[1]) == [NO_IMAGE, *range(7)]
    assert len(own[0]) == len(own[1])
