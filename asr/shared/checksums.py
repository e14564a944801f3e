"""Checksums: files compared with what a manifest says of them, on all cores, and what is wrong with each."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr.shared.meter import Meter

CHUNK = 1 << 20
# What file managers leave in every folder that they have shown. The rest of it is hidden, and so is what a program
# that was killed did not finish.
DROPPINGS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"}
STOPPED = OSError(0, "stopped")


@dataclass(frozen=True)
class Trouble:
    """What is wrong with one file.

    Attributes:
        name: the file, as the manifest spells it.
        kind: missing, extra, shorter, longer, altered or unreadable.
        told: the same as the rest of a sentence that begins with the file.
    """

    name: str
    kind: str
    told: str


def files_below(root: Path, parts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the files in some folders of `root`, and apart from them hidden files and droppings, both sorted."""
    files: list[str] = []
    passed: list[str] = []
    for part in parts:
        for folder, _, names in os.walk(root / part):
            for name in names:
                file = Path(folder, name).relative_to(root)
                listed = passed if any(map(_is_passed_over, file.parts)) else files
                listed.append(file.as_posix())
    return sorted(files), sorted(passed)


def compare_sizes(root: Path, listed: Mapping[str, Mapping[str, Any]]) -> list[Trouble]:
    """Say which of the listed files are missing, shorter, longer, or no files."""
    return [trouble for name, entry in listed.items() if (trouble := _size_trouble(root, name, entry["size"]))]


def compare_contents(root: Path, listed: Mapping[str, Mapping[str, Any]], doing: str = "verifying") -> list[Trouble]:
    """Say which of the listed files are not what they were, byte for byte.

    Args:
        root: what the names are relative to.
        listed: size and sha256 of each name.
        doing: what the progress is called.
    """
    troubles = {trouble.name: trouble for trouble in compare_sizes(root, listed)}
    names = [name for name in listed if name not in troubles]
    digests = digests_of([root / name for name in names], doing, sum(listed[name]["size"] for name in names))
    for name, digest in zip(names, digests, strict=True):
        if isinstance(digest, OSError):
            troubles[name] = _unreadable(name, digest)
        elif digest != listed[name]["sha256"]:
            troubles[name] = Trouble(name, "altered", "has other content than was written (SHA-256 differs)")
    return [troubles[name] for name in listed if name in troubles]


def extras(root: Path, parts: Sequence[str], listed: Mapping[str, Any]) -> list[Trouble]:
    """Say which files in some folders of `root` are not listed."""
    found, _ = files_below(root, parts)
    return [Trouble(name, "extra", "is not in the manifest") for name in found if name not in listed]


def digests_of(files: Sequence[Path], doing: str, total: int) -> list[str | OSError]:
    """Return the SHA-256 of each file, or why it cannot be read. Ctrl-C ends it within moments.

    Args:
        files: any number.
        doing: what the progress is called.
        total: their bytes together.
    """
    meter, stop = Meter(doing, total), threading.Event()

    def digest(file: Path) -> str | OSError:
        try:
            return _digest(file, meter, stop)
        except OSError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            return list(pool.map(digest, files))
        finally:
            stop.set()
            meter.close()


def chunks_of(file: Path) -> Iterator[bytes]:
    """Yield the content of a file piece by piece."""
    with open(file, "rb", buffering=0) as content:
        while chunk := content.read(CHUNK):
            yield chunk


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in DROPPINGS


def _digest(file: Path, meter: Meter, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    for chunk in chunks_of(file):
        if stop.is_set():
            raise STOPPED
        digest.update(chunk)
        meter.add(len(chunk))
    return digest.hexdigest()


def _size_trouble(root: Path, name: str, size: int) -> Trouble | None:
    try:
        found = (root / name).stat()
    except (FileNotFoundError, NotADirectoryError):
        return Trouble(name, "missing", "is missing")
    except OSError as error:
        return _unreadable(name, error)
    if not stat.S_ISREG(found.st_mode):
        return Trouble(name, "unreadable", "is no file")
    if found.st_size == size:
        return None
    kind = "shorter" if found.st_size < size else "longer"
    return Trouble(name, kind, f"has {found.st_size:,} bytes instead of {size:,}")


def _unreadable(name: str, error: OSError) -> Trouble:
    return Trouble(name, "unreadable", f"cannot be read ({error.strerror or error})")
