"""Loads images in batches: in an order that can be resumed anywhere, skipping unreadable images."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from threading import Thread
from types import TracebackType
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset, Sampler

from zoo.stop import SIGNALS
from zoo.training.data.splits import Split
from zoo.training.randomness import drawn_from, mix
from zoo.vision.images import ImageError, decode

NO_IMAGE = -1
"""Marks a missing image: it fills up a batch and is not counted."""


class Note(NamedTuple):
    """What was unusual about a file."""

    file: str
    readable: bool
    what: str


class Batch(NamedTuple):
    """Images (B, C, H, W), their classes (B) and positions (B), both `NO_IMAGE` for missing images, and notes."""

    images: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    notes: list[Note]


class ImageSet(Dataset):
    """The images of a split, by (epoch, position).

    Args:
        shape: (C, H, W) of a transformed image.
        seed: for augmentation, with epoch and position. None for a deterministic transform, for which an unreadable
            image becomes `NO_IMAGE`; in training the next readable image takes its place.
    """

    def __init__(self, split: Split, transform: Any, shape: tuple[int, int, int], seed: int | None = None) -> None:
        self.split, self.transform, self.shape, self.seed = split, transform, shape, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int, int, list[Note]]:
        epoch, position = key
        notes: list[Note] = []
        tries = 0 if position == NO_IMAGE else 1 if self.seed is None else len(self.split)
        for place in (position + i for i in range(tries)):
            place %= len(self.split)
            with drawn_from(self.seed or 0, epoch, position):
                if (pixels := self._pixels(place, notes)) is not None:
                    return pixels, int(self.split.targets[place]), place, notes
        return torch.zeros(self.shape), NO_IMAGE, NO_IMAGE, notes

    def _pixels(self, place: int, notes: list[Note]) -> torch.Tensor | None:
        """The transformed image; None, with a note, if it cannot be read."""
        if (image := self._read(place, notes)) is None:
            return None
        try:
            return self.transform(image)
        except Exception as error:  # no image may end a run after hours
            notes.append(Note(self.split.name(place), False, f"cannot be transformed: {error}"))
            return None

    def _read(self, place: int, notes: list[Note]) -> Image.Image | torch.Tensor | None:
        try:
            with self.split.open(place) as file:
                image, unusual = decode(file, self.shape[0])
        except (ImageError, OSError) as error:
            notes.append(Note(self.split.name(place), False, str(error)))
            return None
        notes.extend(Note(self.split.name(place), True, what) for what in unusual)
        return image

    def __len__(self) -> int:
        return len(self.split)


class TrainingOrder(Sampler):
    """The batches of one process in one epoch: an order drawn from seed and epoch, all images, the last batch filled up
    from the first.

    Attributes:
        epoch: its number.
        start: number of batches to skip in a resumed run.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.count, self.batch_size, self.seed, self.rank, self.world = count, batch_size, seed, rank, world
        self.epoch = self.start = 0
        self.steps = -(-count // batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator)
        order = torch.cat([order, order[: self.steps * self.batch_size - self.count]]).view(self.steps, self.world, -1)
        for step in range(self.start, self.steps):
            yield [(self.epoch, position) for position in order[step, self.rank].tolist()]

    def __len__(self) -> int:
        return self.steps - self.start


class ValidationOrder(Sampler):
    """The batches of one process: every image is in exactly one batch, and all processes have equally many batches."""

    def __init__(self, count: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.count, self.batch_size, self.rank, self.world = count, batch_size, rank, world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        own = list(range(self.rank, self.count, self.world))
        own += [NO_IMAGE] * (-(-self.count // self.world) - len(own))
        for start in range(0, len(own), self.batch_size):
            yield [(0, position) for position in own[start : start + self.batch_size]]

    def __len__(self) -> int:
        return -(-self.count // (self.world * self.batch_size))


def validation_loader(
    split: Split, input_config: dict[str, Any], batch_size: int, workers: int, accelerator: Accelerator
) -> DataLoader:
    """Batches of this process; `input_config` as in `zoo.vision.images`."""
    images = ImageSet(split, create_transform(**input_config), input_config["input_size"])
    order = ValidationOrder(len(split), batch_size, accelerator.process_index, accelerator.num_processes)
    return loader(images, order, workers, accelerator.device.type == "cuda")


def loader(images: ImageSet, order: Sampler, workers: int, pin_memory: bool) -> DataLoader:
    """Batches in the given order, read ahead by `workers` processes."""
    return DataLoader(
        images,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
    )


def _collate(samples: list[tuple[torch.Tensor, int, int, list[Note]]]) -> Batch:
    images, targets, positions, notes = zip(*samples, strict=True)
    flat = [note for some in notes for note in some]
    return Batch(torch.stack(images), torch.tensor(targets), torch.tensor(positions), flat)


def _start_worker(_: int) -> None:
    """Ignore Ctrl-C and its like, sent to the whole group: the training process saves, using what its workers read, and
    ends them. A second SIGTERM is obeyed."""
    Thread(target=_end_with_parent, daemon=True).start()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
    sys.excepthook = _without_broken_connections
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """PyTorch's own watch misses a parent that was killed before it began, and the run would stay locked for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _without_broken_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Nothing is to be said of connections to a training process that was killed."""
    if not isinstance(error, (EOFError, OSError)):
        sys.__excepthook__(kind, error, trace)
