"""Inputs: the recordings that a command line names, as files, folders, patterns and standard input."""

from __future__ import annotations

import glob
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from asr.shared.audio import AUDIO_ENDINGS, is_audio
from utils import UserError

STDIN = "-"


@dataclass(frozen=True)
class Input:
    """A recording.

    Attributes:
        path: where it lies.
        name: what it is called in outputs.
        below: its place below the folder of outputs, without an ending.
    """

    path: Path
    name: str
    below: Path


@contextmanager
def recordings_named(named: Sequence[Path]) -> Iterator[list[Input]]:
    """Give the recordings that are meant, each once; standard input is kept in a file inside the block.

    Args:
        named: files, folders (searched in any depth by the endings of audio files), patterns, and "-".

    Raises:
        UserError: one names nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        found: dict[Path, Input] = {}
        for name in named:
            for one in _meant(name, Path(folder)):
                found.setdefault(one.path, one)
        yield _apart(list(found.values()))


def _meant(named: Path, temporary: Path) -> Iterator[Input]:
    if str(named) == STDIN:
        file = temporary / "stdin"
        with open(file, "wb") as out:
            shutil.copyfileobj(sys.stdin.buffer, out)
        yield Input(file, "stdin", Path("stdin"))
    elif named.is_dir():
        files = sorted(_audio_below(named))
        if not files:
            raise UserError(f"{named}: no audio file is in this folder ({AUDIO_ENDINGS})")
        for file in files:
            yield Input(file, str(file), file.relative_to(named).with_suffix(""))
    elif os.path.exists(named):
        yield Input(named, str(named), Path(named.stem))
    else:
        files = sorted(Path(match) for match in glob.glob(str(named), recursive=True) if Path(match).is_file())
        if not files:
            raise UserError(f"there is no such file: {named}")
        for file in files:
            yield Input(file, str(file), Path(file.stem))


def _audio_below(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            if not name.startswith(".") and is_audio(name):
                yield Path(place, name)


def _apart(inputs: list[Input]) -> list[Input]:
    """Give those that would have one output the whole name of their file, and a number where that is the same, too."""
    counts = Counter(str(one.below).casefold() for one in inputs)
    seen: Counter[str] = Counter()
    told = []
    for one in inputs:
        if counts[str(one.below).casefold()] > 1:
            below = one.below.with_name(one.path.name)
            seen[str(below).casefold()] += 1
            number = seen[str(below).casefold()]
            one = replace(one, below=below.with_name(f"{below.name}-{number}") if number > 1 else below)
        told.append(one)
    return told
