"""The project: its own files are vouched for by the manifest too, so that a half-copied folder is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asr.shared.checksums import Trouble

ROOT = Path(__file__).resolve().parents[2]
# Tests, demo and git stay behind.
KINDS: tuple[str, ...] = ("*.py", "requirements.txt", "README*.md", "LICENSE", "examples/*.toml")
KINDS += tuple(f"asr/**/*.{ending}" for ending in ("py", "j2", "js", "css"))
# Meant to be edited on the box.
TO_EDIT = ("config.py", "examples/")


def project_files(root: Path = ROOT) -> list[str]:
    """Return the names of the files that make the project, sorted."""
    found = {file for kind in KINDS for file in root.glob(kind) if file.is_file() and not file.name.startswith(".")}
    return sorted(file.relative_to(root).as_posix() for file in found)


def list_project(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of each file of the project.

    All of them are text, and git on Windows changes line ends: both are of the text with plain line feeds.
    """
    return {name: _entry(_text(root / name)) for name in project_files(root)}


def compare_project(listed: Mapping[str, Mapping[str, Any]], root: Path = ROOT) -> tuple[list[Trouble], list[str]]:
    """Compare the project here with the one that sealed the bundle.

    Returns:
        what a copy that was cut off leaves (files that are missing, end early, or are full of zeros), and the names
        of files that merely differ: edited, or of another version.
    """
    broken, edited = [], []
    for name, entry in listed.items():
        try:
            text = _text(root / name)
        except (FileNotFoundError, NotADirectoryError):
            broken.append(Trouble(name, "missing", "is missing"))
            continue
        except OSError as error:
            broken.append(Trouble(name, "unreadable", f"cannot be read ({error.strerror})"))
            continue
        if _entry(text) == entry:
            continue
        # Every file of ours ends with a line end, and an editor leaves one.
        if len(text) < entry["size"] and not text.endswith(b"\n"):
            broken.append(Trouble(name, "shorter", f"has {len(text):,} bytes instead of {entry['size']:,}"))
        elif b"\0" in text:
            broken.append(Trouble(name, "altered", "has other content than was written (zeros in it)"))
        else:
            edited.append(name)
    return broken, edited


def half_copied(listed: Mapping[str, Mapping[str, Any]], root: Path = ROOT) -> list[Trouble]:
    """Return what keeps the project here from being used, where it is not simply another version.

    Where code differs that nobody is meant to edit, missing files may belong to the other version alone.
    """
    broken, edited = compare_project({name: entry for name, entry in listed.items() if name.endswith(".py")}, root)
    if any(not name.startswith(TO_EDIT) for name in edited):
        return [trouble for trouble in broken if trouble.kind != "missing"]
    return broken


def _text(file: Path) -> bytes:
    return file.read_bytes().replace(b"\r\n", b"\n")


def _entry(text: bytes) -> dict[str, Any]:
    return {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
