"""Memory: which files of which bundle were verified on this machine, so that each is read in full only once.

It lies outside the bundle, which may be read-only and belong to another user. Losing it costs time, and nothing else:
whatever goes wrong here means that files are verified again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils import write_atomically

NAME = "whisper-offline-training"
# Some file systems note times in steps of two seconds: what changed only now may change again without a trace.
SETTLED_S = 3
MOST_KEPT = 100

# Size, time of the last change of the content, and time of the last change of any kind: no copying tool sets the last.
Stamp = tuple[int, int, int]


def stamps_of(path: Path, names: Iterable[str]) -> dict[str, Stamp]:
    """Return what tells a file from the one that stood there before, without reading it; none for what is not there."""
    found = {}
    for name in names:
        with contextlib.suppress(OSError):
            state = (path / name).stat()
            found[name] = (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return found


def recall(path: Path, manifest_sha256: str) -> dict[str, Stamp]:
    """Return the stamps that files of the bundle had when they were verified."""
    for folder in _folders():
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            content = json.loads((folder / _file_name(path, manifest_sha256)).read_text(encoding="utf-8"))
            return {name: (stamp[0], stamp[1], stamp[2]) for name, stamp in content["files"].items()}
    return {}


def remember(path: Path, manifest_sha256: str, stamps: dict[str, Stamp]) -> None:
    """Note stamps that were taken before the files were verified; those that changed only just are left out."""
    settled = (time.time() - SETTLED_S) * 1e9
    old = {name: stamp for name, stamp in stamps.items() if max(stamp[1:]) < settled}
    content = json.dumps({"bundle": str(path), "manifest_sha256": manifest_sha256, "files": old})
    for folder in _folders():
        # A path may be one that no text file holds.
        with contextlib.suppress(OSError, ValueError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(folder / _file_name(path, manifest_sha256), content)
            _forget_the_oldest(folder)
            return


def _file_name(path: Path, manifest_sha256: str) -> str:
    place = os.fsencode(path.resolve())
    return hashlib.sha256(manifest_sha256.encode() + b"\n" + place).hexdigest()[:32] + ".json"


def _folders() -> Iterator[Path]:
    """Yield the places for it, the best first."""
    with contextlib.suppress(OSError, RuntimeError):
        named = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else "")
        cache = Path(named) if named else Path.home() / ".cache"
        if cache.is_absolute():
            yield cache / NAME / "verified"
    with contextlib.suppress(OSError):
        user = str(os.getuid()) if hasattr(os, "getuid") else "user"
        folder = Path(tempfile.gettempdir()) / f"{NAME}-{user}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if _is_ours_alone(folder):
            yield folder


def _is_ours_alone(folder: Path) -> bool:
    """Anyone may put a folder of any name into the folder for temporary files."""
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode):
        return False
    return not hasattr(os, "getuid") or (state.st_uid == os.getuid() and not state.st_mode & 0o022)


def _forget_the_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    for file in files[:-MOST_KEPT]:
        file.unlink(missing_ok=True)
