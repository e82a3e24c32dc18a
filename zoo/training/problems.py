"""Records the unreadable and unusual files of a whole run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from accelerate.utils import gather_object

from zoo.errors import ConfigError
from zoo.files import write_text
from zoo.text import printable
from zoo.training.data.loading import Note


class Problems:
    """Notes about files, each once, over all processes.

    Args:
        path: path of the report, a CSV that is written only if there is something to report; None for no report.
        images: total number of images.
        most: the share of them that may be unreadable.
    """

    def __init__(self, path: Path | None, images: int, most: float) -> None:
        self.path, self.images, self.most = path, images, most
        self.notes: dict[str, dict[str, bool]] = {}
        self.bad: dict[str, None] = {}  # in order; every step looks at it

    def read(self) -> None:
        """Read the report of an earlier part of the run.

        Raises:
            ConfigError: if it cannot be read.
        """
        if self.path is not None and self.path.is_file():
            try:
                with self.path.open(newline="", encoding="utf-8") as file:
                    self.add(Note(row["file"], row["readable"] == "yes", row["what"]) for row in csv.DictReader(file))
            except (OSError, ValueError, KeyError, AttributeError, csv.Error) as error:
                raise ConfigError(f"{self.path}: is damaged ({error}); remove it to go on without its notes") from error

    def add(self, notes: Iterable[Note]) -> None:
        """Record notes."""
        for note in notes:
            note = note._replace(file=printable(note.file))
            for what in note.what.split("; "):
                self.notes.setdefault(note.file, {})[what] = note.readable
            if not note.readable:
                self.bad[note.file] = None

    def too_many(self) -> bool:
        """Whether too many files are unreadable."""
        return len(self.bad) > self.most * self.images

    def check(self) -> None:
        """Stop if too many files are unreadable.

        Raises:
            ConfigError: if there are too many, with the list.
        """
        if self.too_many():
            bad = self.unreadable()
            self.write()
            listed = "\n".join(f"  {file}: {'; '.join(self.notes[file])}" for file in bad[:20])
            raise ConfigError(
                f"{len(bad)} of {self.images} images cannot be read, more than the share max_bad_share={self.most:g} "
                f"allows; all of them stand in {self.path}, these are the first:\n{listed}"
            )

    def none_readable(self, what: str) -> NoReturn:
        """Stop a run without any readable image, giving the reason for the first file.

        Raises:
            ConfigError: always, with `what` and the reason.
        """
        self.write()
        first = next(iter(self.bad))
        raise ConfigError(f"{what}; the first is {first}: {'; '.join(self.notes[first])}")

    def unreadable(self) -> list[str]:
        """The files that were skipped."""
        return list(self.bad)

    def gather(self) -> None:
        """Collect the notes of all processes."""
        own = [Note(file, ok, what) for file, notes in self.notes.items() for what, ok in notes.items()]
        self.add(gather_object(own))

    def write(self) -> None:
        """Write the report, if there is anything to report."""
        if not self.notes or self.path is None:
            return
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "readable", "what"])
        for file, notes in sorted(self.notes.items()):
            writer.writerow([file, "no" if file in self.bad else "yes", "; ".join(notes)])
        write_text(self.path, text.getvalue())
