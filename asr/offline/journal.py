"""The journal: what a system has written of a test set, batch by batch; nothing in it is decoded a second time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asr.offline.lock import sole_use
from utils import write_atomically, write_json

# Of the code: raised when it comes to write other texts of the same audio.
FORMAT = 1
ABOUT, TEXTS = "about.json", "texts.jsonl"


@dataclass(frozen=True)
class Entry:
    """A batch.

    Attributes:
        pieces: number of each clip, and of the part of it, as a clip longer than a window has several.
        texts: of these, in their order.
        seconds: that it took.
    """

    pieces: list[tuple[int, int]]
    texts: list[str]
    seconds: float


@dataclass
class Journal:
    """One system over one test set with one window.

    Attributes:
        folder: of this journal alone.
        about: all that the texts hang on, which is its name as well.
        entries: what is done.
        complete: nothing is left to be done.
    """

    folder: Path
    about: dict[str, Any]
    entries: list[Entry] = field(default_factory=list)
    complete: bool = False

    @property
    def seconds(self) -> float:
        """How long all of it took."""
        return sum(entry.seconds for entry in self.entries)

    def texts(self, clips: int) -> list[str]:
        """Return the text of each clip, its parts joined."""
        written = {piece: text for entry in self.entries for piece, text in zip(entry.pieces, entry.texts, strict=True)}
        joined: list[list[str]] = [[] for _ in range(clips)]
        for (clip, _), text in sorted(written.items()):
            joined[clip].append(text)
        return [" ".join(filter(None, parts)) for parts in joined]

    @contextmanager
    def going_on(self, planned: list[list[tuple[int, int]]]) -> Iterator[Journal]:
        """Hold it for this process alone inside the block, where `add` writes; it is complete when the block ends.

        Args:
            planned: pieces of every batch; what is there of another plan is taken back.

        Raises:
            UserError: another process has it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with sole_use(self.folder):
            self.entries, _ = _read(self.folder)
            same = [entry.pieces == pieces for entry, pieces in zip(self.entries, planned, strict=False)]
            self.entries = self.entries[: same.index(False) if False in same else len(same)]
            if not (self.folder / ABOUT).is_file():
                write_json(self.folder / ABOUT, self.about)
            # Whole at any moment: what a crash left behind the last whole line goes.
            write_atomically(self.folder / TEXTS, "".join(f"{_line(entry)}\n" for entry in self.entries))
            yield self
            _append(self.folder / TEXTS, json.dumps({"complete": True}))
            self.complete = True

    def add(self, entry: Entry) -> None:
        """Keep a batch: when this returns, it is on the disk."""
        _append(self.folder / TEXTS, _line(entry))
        self.entries.append(entry)


def open_journal(folder: Path, about: dict[str, Any], fresh: bool = False) -> Journal:
    """Return the journal of what `about` describes.

    Args:
        folder: of all journals.
        about: everything that the texts hang on.
        fresh: begin it anew.
    """
    about = {"format": FORMAT, **about}
    own = folder / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:20]
    if fresh and own.exists():
        with sole_use(own):
            (own / TEXTS).unlink(missing_ok=True)
    return Journal(own, about, *_read(own))


def _read(folder: Path) -> tuple[list[Entry], bool]:
    """Return the entries of a journal, and whether it is complete; a line that a crash cut off ends it."""
    entries: list[Entry] = []
    try:
        lines = (folder / TEXTS).read_bytes().splitlines()
    except OSError:
        return entries, False
    for line in lines:
        try:
            value = json.loads(line)
            if value.get("complete"):
                return entries, True
            pieces = [(int(clip), int(part)) for clip, part in value["pieces"]]
            entry = Entry(pieces, list(map(str, value["texts"])), float(value["seconds"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            break
        if len(entry.pieces) != len(entry.texts):
            break
        entries.append(entry)
    return entries, False


def _line(entry: Entry) -> str:
    return json.dumps(vars(entry), ensure_ascii=False)


def _append(file: Path, line: str) -> None:
    with open(file, "ab") as out:
        out.write(f"{line}\n".encode())
        out.flush()
        os.fsync(out.fileno())
