"""Staging: the folder inside a bundle's in which unpacked files grow until all of them are whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from asr.shared.bundle import MANIFEST, PARTS, SEAL, read_manifest
from asr.shared.checksums import compare_contents, digests_of
from asr.shared.volumes import Index, Piece, Volume
from utils import BundleError, UserError, replace_folder, write_json

STAGING = ".unpacking"


class Staging:
    """The folder in which files grow, and the notes about what is done.

    Attributes:
        path: the folder; files are in content/.
        index: of the volumes.
        volumes: names of those whose content stands in the files.
        taken: names of files that came from the bundle before.
        verified: all files are what they should be; they may be moved into their places already.
    """

    def __init__(self, path: Path, index: Index) -> None:
        self.path, self.index = path, index
        self.volumes: set[str] = set()
        self.taken: set[str] = set()
        self.verified = False
        if path.is_symlink():
            raise UserError(f"{path} is a link: remove it")
        if not self._read_notes():
            shutil.rmtree(path, ignore_errors=True)
            for piece in index.pieces:
                self.file(piece).parent.mkdir(parents=True, exist_ok=True)
            self.note()

    def file(self, piece: Piece) -> Path:
        """Where the content of a file grows."""
        return self.path / "content" / piece.name

    def note(self) -> None:
        """Keep what is done for the next time."""
        notes = {"index": self.index.sha256, "volumes": sorted(self.volumes), "taken": sorted(self.taken)}
        write_json(self.path / "notes.json", {**notes, "verified": self.verified})

    def missing(self) -> list[Volume]:
        """The volumes that are still needed: some file has content there and is not whole without it."""
        left = [volume for volume in self.index.volumes if volume.name not in self.volumes]
        return [volume for volume in left if self.pieces_in(volume)]

    def pieces_in(self, volume: Volume) -> list[Piece]:
        """The files that have content in a volume and were not taken from elsewhere."""
        return [
            piece
            for piece in self.index.pieces
            if piece.name not in self.taken and max(piece.begin, volume.begin) < min(piece.end, volume.end)
        ]

    def take_from(self, bundle_dir: Path) -> None:
        """Take what is the same in the bundle that stands there, so that its volumes are not needed."""
        same_size = [
            piece
            for piece in self.index.pieces
            if piece.name not in self.taken and piece.size and size_of(bundle_dir / piece.name) == piece.size
        ]
        digests = digests_of(
            [bundle_dir / piece.name for piece in same_size],
            "comparing what is there",
            sum(piece.size for piece in same_size),
        )
        for piece, digest in zip(same_size, digests, strict=True):
            if digest == piece.sha256:
                self.file(piece).unlink(missing_ok=True)
                _link_or_copy(bundle_dir / piece.name, self.file(piece))
                self.taken.add(piece.name)
        self.note()

    def verify(self, listed: dict[str, dict[str, Any]]) -> None:
        """See that every file is what the manifest says; what is not is restored again the next time."""
        troubles = compare_contents(self.path / "content", listed, "verifying")
        for trouble in troubles:
            self.taken.discard(trouble.name)
            self.volumes -= {volume.name for volume in self.index.volumes if _holds(volume, trouble.name, self)}
            # It may be the same file as the old bundle's: never write into it.
            (self.path / "content" / trouble.name).unlink(missing_ok=True)
        if troubles:
            self.note()
            raise BundleError(f"{troubles[0].name} {troubles[0].told} after unpacking: repeat it, and check this disk")
        files = read_manifest(self.path / "content").manifest["files"]
        if files != {name: entry for name, entry in listed.items() if name not in (MANIFEST, SEAL)}:
            raise BundleError("the volumes do not hold what their manifest says: pack the bundle again")
        self.verified = True
        self.note()

    def put_in_place(self, bundle_dir: Path) -> None:
        """Move everything into its place, the manifest last; broken off, the next go ends it."""
        content = self.path / "content"
        for name in (MANIFEST, SEAL):
            if (content / name).exists():
                (bundle_dir / name).unlink(missing_ok=True)
        for part in PARTS:
            if (content / part).is_dir():
                _sync(content / part)
                replace_folder(content / part, bundle_dir / part)
            elif not any(piece.name.startswith(f"{part}/") for piece in self.index.pieces):
                shutil.rmtree(bundle_dir / part, ignore_errors=True)
        for name in (SEAL, MANIFEST):
            if (content / name).exists():
                os.replace(content / name, bundle_dir / name)
        shutil.rmtree(self.path, ignore_errors=True)

    def _read_notes(self) -> bool:
        try:
            notes = json.loads((self.path / "notes.json").read_text(encoding="utf-8"))
            if notes["index"] != self.index.sha256:
                return False
            self.volumes, self.taken, self.verified = set(notes["volumes"]), set(notes["taken"]), notes["verified"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return True


def _holds(volume: Volume, name: str, staging: Staging) -> bool:
    return any(
        piece.name == name and max(piece.begin, volume.begin) < min(piece.end, volume.end)
        for piece in staging.index.pieces
    )


def _sync(folder: Path) -> None:
    # What came from the old bundle may be read-only; Windows, though, syncs only what is open for writing.
    mode = "rb" if os.name == "posix" else "rb+"
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, mode) as content:
                os.fsync(content.fileno())


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def size_of(file: Path) -> int:
    """Return the size of a file, or -1 where there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return -1
