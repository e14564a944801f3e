"""Packing: a bundle into volumes, and the project beside them. What is there and whole is not written again."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from asr.shared.bundle import Bundle, open_bundle
from asr.shared.checksums import CHUNK, chunks_of
from asr.shared.meter import Meter, in_bytes
from asr.shared.project import ROOT, project_files
from asr.shared.volumes import (
    INDEX,
    PROJECT,
    SUMS,
    VOLUME,
    Index,
    Piece,
    Volume,
    is_safe,
    lay_out,
    padding,
    told_in_words,
    volume_size,
)
from utils import BundleError, UserError, log, sha256_of, write_atomically, write_json

ZIP_FOLDER = "whisper-offline-training"
SPARE = 10**6


def pack(bundle_dir: Path, folder: Path, size: str, project_dir: Path = ROOT) -> Index:
    """Write a bundle into volumes.

    Args:
        bundle_dir: the bundle; it is verified first.
        folder: of the volumes; what else lies there stays.
        size: of a volume at most, as 4GB.
        project_dir: the project that goes with it.

    Raises:
        UserError: the size is no size, the folder lies in the bundle, or the disk is too small.
        BundleError: the bundle is not whole.
    """
    limit = volume_size(size)
    if bundle_dir.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"--pack {folder}: this folder lies in the bundle; give another one")
    bundle = open_bundle(bundle_dir)
    unsafe = [name for name in bundle.manifest["files"] if not is_safe(name)]
    if unsafe:
        raise UserError(
            f"{bundle_dir / unsafe[0]}: not every system can hold a file of that name; rename it and seal again"
        )
    archive = Archive(bundle)
    begins = range(0, archive.length, limit)
    digits = max(3, len(str(len(begins))))
    planned = [
        Volume(f"bundle.{n:0{digits}}.wvol", begin, min(limit, archive.length - begin), "")
        for n, begin in enumerate(begins, 1)
    ]
    with told_in_words(f"--pack {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        whole = _whole(folder, planned, archive)
        fresh = [volume for volume in planned if volume.name not in whole]
        _check_space(folder, fresh)
        # From here to the end the folder has no index: volumes of two bundles are never taken for one.
        for name in (SUMS, INDEX):
            (folder / name).unlink(missing_ok=True)
        digests = whole | _write(folder, fresh, archive)
        project = project_zip(project_dir)
        volumes = tuple(replace(volume, sha256=digests[volume.name]) for volume in planned)
        pieces = tuple(piece for _, piece in archive.placed)
        index = Index(bundle.manifest_sha256, limit, pieces, volumes, hashlib.sha256(project).hexdigest())
        _finish(folder, index, project)
    _tell(folder, index, fresh)
    return index


class Archive:
    """The tar archive of a bundle, of which any stretch can be read without the rest.

    Attributes:
        placed: each file, with the header before it.
        length: bytes of the whole.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.path = bundle.path
        self.placed, self.length = lay_out(bundle)
        self.begins = [piece.begin - len(header) for header, piece in self.placed]

    def read(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from `begin` to `end`, piece by piece."""
        position = begin
        first = max(bisect_right(self.begins, begin) - 1, 0)
        for header, piece in self.placed[first:]:
            behind = piece.end + padding(piece.size)
            if position < min(piece.begin, end):
                start = position - (piece.begin - len(header))
                yield header[start : start + end - position]
                position = min(piece.begin, end)
            if position < min(piece.end, end):
                yield from self._content(piece, position - piece.begin, min(piece.end, end) - position)
                position = min(piece.end, end)
            if position < min(behind, end):
                yield bytes(min(behind, end) - position)
                position = min(behind, end)
            if position == end:
                return
        yield bytes(end - position)

    def _content(self, piece: Piece, start: int, count: int) -> Iterator[bytes]:
        with open(self.path / piece.name, "rb") as content:
            content.seek(start)
            while count:
                chunk = content.read(min(CHUNK, count))
                if not chunk:
                    raise BundleError(f"{self.path / piece.name} became shorter while it was packed")
                count -= len(chunk)
                yield chunk


def project_zip(project_dir: Path = ROOT) -> bytes:
    """Return the project as a zip archive, which every system opens; the same files make the same bytes."""
    content = BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in project_files(project_dir):
            entry = zipfile.ZipInfo(f"{ZIP_FOLDER}/{name}")
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, (project_dir / name).read_bytes())
    return content.getvalue()


def _whole(folder: Path, planned: Sequence[Volume], archive: Archive) -> dict[str, str]:
    """Return name and SHA-256 of the volumes that are there as they would be written."""
    there = [volume for volume in planned if _size(folder / volume.name) == volume.size]
    meter, whole = Meter("comparing what is there", sum(2 * volume.size for volume in there)), {}
    for volume in there:
        digest = _sha256(archive.read(volume.begin, volume.end), meter)
        if _sha256(chunks_of(folder / volume.name), meter) == digest:
            whole[volume.name] = digest
    meter.close()
    return whole


def _check_space(folder: Path, fresh: Sequence[Volume]) -> None:
    # A volume that is not whole gives its place to the new one.
    taken = sum(_size(folder / volume.name) for volume in fresh)
    needed, free = sum(volume.size for volume in fresh) + SPARE, shutil.disk_usage(folder).free + taken
    if needed > free:
        raise UserError(f"--pack {folder}: the volumes need {in_bytes(needed)}, and {in_bytes(free)} are free")
    if fresh:
        log.info("packing: %d volumes, %s, are to be written to %s", len(fresh), in_bytes(needed - SPARE), folder)


def _write(folder: Path, fresh: Sequence[Volume], archive: Archive) -> dict[str, str]:
    """Write volumes, each beside its place and then renamed; return name and SHA-256 of each."""
    meter, digests = Meter("packing", sum(volume.size for volume in fresh)), {}
    for volume in fresh:
        beside = folder / f".{volume.name}.tmp"
        (folder / volume.name).unlink(missing_ok=True)
        try:
            with open(beside, "wb") as file:
                digest = hashlib.sha256()
                for chunk in archive.read(volume.begin, volume.end):
                    file.write(chunk)
                    digest.update(chunk)
                    meter.add(len(chunk))
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, folder / volume.name)
        finally:
            beside.unlink(missing_ok=True)
        digests[volume.name] = digest.hexdigest()
    meter.close()
    return digests


def _finish(folder: Path, index: Index, project: bytes) -> None:
    named = {volume.name for volume in index.volumes}
    for file in folder.iterdir():
        if VOLUME.fullmatch(file.name) and file.name not in named:
            log.info("removed: %s, of an earlier packing", file)
            file.unlink()
    write_atomically(folder / PROJECT, project)
    write_json(folder / INDEX, index.to_json())
    sums = {volume.name: volume.sha256 for volume in index.volumes}
    sums |= {INDEX: sha256_of(folder / INDEX), PROJECT: index.project}
    write_atomically(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def _tell(folder: Path, index: Index, fresh: Sequence[Volume]) -> None:
    count, size = len(index.volumes), in_bytes(index.volumes[-1].end)
    log.info("done: %s holds %d volumes, %s; %d of them are new", folder, count, size, len(fresh))
    if 0 < len(fresh) < count:
        log.info("copy again: %s, %s, %s and %s", ", ".join(volume.name for volume in fresh), PROJECT, INDEX, SUMS)
    log.info("next: copy the folder to the box, unzip %s there, then in its folder:", PROJECT)
    log.info("  python run_online_setup.py --unpack FOLDER && python run_online_setup.py --verify")


def _sha256(chunks: Iterator[bytes], meter: Meter) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        meter.add(len(chunk))
    return digest.hexdigest()


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
