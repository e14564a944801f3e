"""Checkpoints: complete or nothing."""

from __future__ import annotations

import json
from pathlib import Path

from utils import log, sha256_of, write_json

MARK = "complete.json"


def mark_complete(checkpoint: Path) -> None:
    """Write the list of a checkpoint's files with their SHA-256: the last file that it gets."""
    files = {file.name: sha256_of(file) for file in sorted(checkpoint.iterdir()) if file.is_file()}
    write_json(checkpoint / MARK, files)


def newest_complete(folder: Path) -> Path | None:
    """Return the newest checkpoint whose every file is whole, or None; say which ones are passed over."""
    numbered = {int(path.name[11:]): path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()}
    for _, checkpoint in sorted(numbered.items(), reverse=True):
        if _is_complete(checkpoint):
            return checkpoint
        log.info("%s is not complete: passed over", checkpoint)
    return None


def _is_complete(checkpoint: Path) -> bool:
    try:
        files = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        return all(sha256_of(checkpoint / name) == digest for name, digest in files.items())
    except (OSError, ValueError):
        return False
