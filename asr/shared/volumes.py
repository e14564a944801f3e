"""Volumes: a bundle as one tar archive that is cut into numbered files, each with a checksum of its own.

A folder of volumes holds

    bundle.001.wvol ...  the archive, cut wherever a volume is full: `cat bundle.*.wvol | tar x` opens it anywhere
    index.json           which file lies where in the archive, and size and SHA-256 of every file and every volume
    project.zip          the project, for a box that has no copy of it yet
    SHA256SUMS           checksums of all these: `sha256sum -c SHA256SUMS` needs nothing of ours

Everything follows from the bundle's content and the size of a volume: packed again, the same bytes come out.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from errno import EDQUOT, EFBIG, ENOSPC
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from asr.shared.bundle import MANIFEST, PARTS, SEAL, Bundle
from utils import BundleError, UserError, sha256_of

FORMAT = 1
INDEX, SUMS, PROJECT = "index.json", "SHA256SUMS", "project.zip"
VOLUME = re.compile(r"bundle\.\d{3,}\.wvol")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SMALLEST_VOLUME = 10**6
# What changes least comes first, so that a second setup leaves the first volumes as they were.
ORDER = ("wheels", "model", "data", "reports")
# Names that Windows takes for devices.
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Span:
    """A stretch of the archive, from `begin` on."""

    name: str
    begin: int
    size: int
    sha256: str

    @property
    def end(self) -> int:
        """Where what follows begins."""
        return self.begin + self.size


# The content of a file, and what a volume holds: both are stretches of the one archive.
Piece = Span
Volume = Span


@dataclass(frozen=True)
class Index:
    """What lies in a folder of volumes.

    Attributes:
        manifest_sha256: which bundle it is.
        volume_size: of all volumes but the last.
        pieces: the files, in the order of the archive.
        volumes: in their order.
        project: SHA-256 of project.zip.
        sha256: of index.json itself.
    """

    manifest_sha256: str
    volume_size: int
    pieces: tuple[Piece, ...]
    volumes: tuple[Volume, ...]
    project: str
    sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what stands in index.json."""
        content = asdict(self)
        del content["sha256"]
        return {"format": FORMAT, **content}


def volume_size(text: str) -> int:
    """Return the bytes that 700MB, 4GB or 25GB mean; 4GB is as much as FAT32 holds in a file.

    Raises:
        UserError: this is no size, or less than 1MB.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(KB|MB|GB|TB)", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if size < SMALLEST_VOLUME:
        raise UserError(f"--volume-size {text}: it must be a size of at least 1MB, as 700MB, 4GB or 25GB")
    return 2**32 - 1 if size == 4 * 10**9 else size


def lay_out(bundle: Bundle) -> tuple[list[tuple[bytes, Piece]], int]:
    """Return each file with the tar header that comes before it, and the length of the whole archive."""
    files = {name: (entry["size"], entry["sha256"]) for name, entry in bundle.manifest["files"].items()}
    for name in (MANIFEST, SEAL):
        files[name] = ((bundle.path / name).stat().st_size, sha256_of(bundle.path / name))
    placed, offset = [], 0
    for name in sorted(files, key=_place):
        size, digest = files[name]
        header = tarfile.TarInfo(name)
        header.size = size
        before = header.tobuf(tarfile.PAX_FORMAT)
        piece = Piece(name, offset + len(before), size, digest)
        placed.append((before, piece))
        offset = piece.end + padding(size)
    return placed, offset + 2 * tarfile.BLOCKSIZE


def padding(size: int) -> int:
    """Return how many zeros stand behind a file in a tar archive."""
    return -size % tarfile.BLOCKSIZE


def read_index(folder: Path) -> Index:
    """Return what lies in a folder of volumes, whether the volumes are whole or not.

    Raises:
        UserError: this is no such folder.
        BundleError: its index is missing, damaged or unsafe.
    """
    if not folder.is_dir():
        raise UserError(f"--unpack {folder}: there is no such folder")
    if not (folder / SUMS).is_file() and not (folder / INDEX).is_file():
        raise UserError(
            f"--unpack {folder}: there are no volumes; --pack writes {INDEX}, {SUMS} and bundle.001.wvol ..."
        )
    try:
        sums, digest = (folder / SUMS).read_text(encoding="ascii"), sha256_of(folder / INDEX)
        if f"{digest}  {INDEX}\n" not in sums.replace("\r\n", "\n"):
            raise BundleError(f"{folder}: {INDEX} or {SUMS} is damaged, or the packing did not finish: copy both again")
        index = _parse(json.loads((folder / INDEX).read_text(encoding="utf-8")), digest)
    except OSError as error:
        raise BundleError(f"{error.filename}: {error.strerror}; copy it again") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{folder / INDEX} cannot be used ({str(error).strip()}): copy the project that packed it"
        ) from None
    return index


def is_safe(name: str) -> bool:
    """Is this the name of a file inside a bundle, on every system, that leads nowhere else?"""
    path = PurePosixPath(name)
    if name in (MANIFEST, SEAL):
        return True
    inside = len(path.parts) > 1 and path.parts[0] in PARTS and str(path) == name
    plain = name.isprintable() and not set(name) & set('\\:*?"<>|')
    return inside and plain and all(_is_plain(part) for part in path.parts)


@contextmanager
def told_in_words(doing: str) -> Iterator[None]:
    """Turn what a disk says into one line for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            reason = "the disk is full: make room and repeat the command, what is done is kept"
        elif error.errno == EFBIG:
            reason = "this file system holds no files of that size: use a smaller --volume-size"
        else:
            reason = error.strerror or str(error)
        at = f" ({error.filename})" if error.filename else ""
        raise UserError(f"{doing}: {reason}{at}") from None


def _place(name: str) -> tuple[int, str]:
    part = name.partition("/")[0]
    return (ORDER.index(part) if part in ORDER else len(ORDER), name)


def _is_plain(part: str) -> bool:
    return part not in ("", ".", "..") and not part.endswith((".", " ")) and not DEVICES.fullmatch(part)


def _parse(content: dict[str, Any], digest: str) -> Index:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}, this code reads {FORMAT}")
    pieces = tuple(Piece(**piece) for piece in content["pieces"])
    volumes = tuple(Volume(**volume) for volume in content["volumes"])
    for piece in pieces:
        if not is_safe(piece.name):
            raise ValueError(f"{piece.name!r} leads out of the bundle")
    names = [piece.name.casefold() for piece in pieces]
    if len(names) != len(set(names)) or not {MANIFEST, SEAL} <= set(names):
        raise ValueError("a file stands twice, or the manifest not at all")
    spans: list[Span] = [*pieces, *volumes]
    numbers = [number for span in spans for number in (span.begin, span.size)]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a size is no number of bytes")
    if any(a.end > b.begin for a, b in pairwise(pieces)):
        raise ValueError("files overlap")
    if any(not VOLUME.fullmatch(volume.name) for volume in volumes):
        raise ValueError("a volume has another name than volumes have")
    if not volumes or volumes[0].begin != 0 or any(a.end != b.begin for a, b in pairwise(volumes)):
        raise ValueError("the volumes have gaps")
    if pieces[-1].end > volumes[-1].end:
        raise ValueError("the files are longer than the volumes")
    if {piece.name: piece.sha256 for piece in pieces}[MANIFEST] != content["manifest_sha256"]:
        raise ValueError("it is of another bundle than its manifest")
    return Index(content["manifest_sha256"], content["volume_size"], pieces, volumes, content["project"], digest)
