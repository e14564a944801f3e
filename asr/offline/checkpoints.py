"""Checkpoints: complete or nothing.

One grows in a hidden folder beside the others. It is verified and brought to the disk there, and only then gets its
name; what a crash leaves in the hidden folder is no checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from asr.shared.meter import in_bytes
from utils import WhisperError, log, replace_folder, sha256_of, write_json

if TYPE_CHECKING:
    import torch

MARK = "complete.json"
GROWING = ".growing"
# Tokenizer, settings and the states of the generators; weights and Adam's moments are counted.
SMALL_FILES_BYTES = 8_000_000


class NoRoom(WhisperError):
    """The disk has no room for a checkpoint."""


def checkpoint_bytes(model: torch.nn.Module) -> int:
    """Return how much room a checkpoint of `model` takes, about: what is trained and Adam's two moments of it."""
    return SMALL_FILES_BYTES + 3 * sum(p.nbytes for p in model.parameters() if p.requires_grad)


def require_room(folder: Path, needed: int) -> None:
    """See that a checkpoint has room before it is begun: a full disk would harm other programs, too.

    Raises:
        NoRoom: it has none.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoRoom(f"{in_bytes(free)} free, {in_bytes(needed)} needed")


def put_in_place(grown: Path, folder: Path, keep: int) -> None:
    """Make a checkpoint of what has grown, and remove the oldest of the others.

    Args:
        grown: the folder with all the files; its name is the checkpoint's.
        folder: of the checkpoints.
        keep: how many of them stay, this one included.

    Raises:
        WhisperError: a file is not what was written.
    """
    for file in _files(grown):
        with open(file, "rb+") as content:
            os.fsync(content.fileno())
        if not _opens(file):
            raise WhisperError(f"{file} cannot be read back: check this disk; --resume goes on from the one before")
    mark_complete(grown)
    replace_folder(grown, folder / grown.name)
    remove_old(folder / grown.name, keep)


def remove_old(newest: Path, keep: int) -> None:
    """Remove the oldest checkpoints, so that `keep` stay of `newest`, which is whole, and those before it."""
    folder = newest.parent
    # Those with higher numbers were passed over at the start: none of them stands in for one that is whole.
    for old in sorted(n for n in _numbered(folder) if n <= _number(newest))[:-keep]:
        shutil.rmtree(folder / f"checkpoint-{old}", ignore_errors=True)


def mark_complete(checkpoint: Path) -> None:
    """Write the list of a checkpoint's files with their SHA-256: the last file that it gets."""
    files = {file.relative_to(checkpoint).as_posix(): sha256_of(file) for file in _files(checkpoint)}
    write_json(checkpoint / MARK, files)


def newest_complete(folder: Path) -> Path | None:
    """Return the newest checkpoint whose every file is whole, or None; say which ones are passed over."""
    for _, checkpoint in sorted(_numbered(folder).items(), reverse=True):
        if _is_complete(checkpoint):
            return checkpoint
        log.info("%s is not complete: passed over", checkpoint)
    return None


def _numbered(folder: Path) -> dict[int, Path]:
    return {_number(path): path for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal()}


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name[11:])


def _files(checkpoint: Path) -> list[Path]:
    return sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name != MARK)


def _opens(file: Path) -> bool:
    """Look at what shows that a file was cut short: a header that tells its size, or a list at its end."""
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt"):
                return True
        except (SafetensorError, OSError):
            return False
    return zipfile.is_zipfile(file) if file.suffix in (".pt", ".pth", ".bin") else True


def _is_complete(checkpoint: Path) -> bool:
    try:
        files = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        return all(sha256_of(checkpoint / name) == digest for name, digest in files.items())
    except (OSError, ValueError):
        return False
