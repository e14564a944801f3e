"""Unpacking: volumes into a bundle again, in any number of goes, with what is good kept from one to the next.

Files grow in a folder inside the bundle's, and take their places when all of them are what the manifest says; a
bundle that stood there is whole until then.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from asr.shared.bundle import MANIFEST, PARTS, read_manifest, refuse_half_project
from asr.shared.checksums import CHUNK, compare_contents, extras
from asr.shared.memory import remember, stamps_of
from asr.shared.meter import Meter, in_bytes
from asr.shared.staging import STAGING, Staging, size_of
from asr.shared.volumes import PROJECT, Index, Volume, read_index, told_in_words
from utils import BundleError, UserError, WhisperError, log, sha256_of

SPARE = 10**6


class Unreadable(Exception):
    """A volume that the disk does not give."""


def unpack(folder: Path, bundle_dir: Path) -> None:
    """Restore the bundle of a folder of volumes.

    Args:
        folder: of the volumes. Where they come on several discs, it may hold some of them at a time.
        bundle_dir: where the bundle goes. What of a bundle there is the same is taken from it.

    Raises:
        UserError: there are no volumes, what stands at `bundle_dir` is no bundle, or the disk is too small.
        BundleError: volumes are damaged or missing, and still needed; the message names them. Or the project that runs
            this is only half there.
    """
    index = read_index(folder)
    listed = {piece.name: {"size": piece.size, "sha256": piece.sha256} for piece in index.pieces}
    with told_in_words(f"--unpack {folder}"):
        _refuse_what_is_no_bundle(bundle_dir)
        _tell_project(folder, index)
        if _is_there(bundle_dir, index, listed):
            log.info("nothing to do: %s is this bundle, and whole", bundle_dir)
            shutil.rmtree(bundle_dir / STAGING, ignore_errors=True)
            return
        bundle_dir.mkdir(parents=True, exist_ok=True)
        staging = Staging(bundle_dir / STAGING, index)
        if not staging.verified:
            staging.take_from(bundle_dir)
            _restore(folder, staging)
            staging.verify(listed)
        staging.put_in_place(bundle_dir)
    bundle = read_manifest(bundle_dir)
    remember(bundle_dir, bundle.manifest_sha256, stamps_of(bundle_dir, bundle.manifest["files"]))
    size = in_bytes(sum(piece.size for piece in index.pieces))
    log.info("done: %s holds %d files, %s, every one verified", bundle_dir, len(listed), size)
    refuse_half_project(bundle)


def _refuse_what_is_no_bundle(bundle_dir: Path) -> None:
    """Nothing is replaced that may be somebody's own data."""
    if bundle_dir.exists() and not bundle_dir.is_dir():
        raise UserError(f"--bundle-dir {bundle_dir} is a file; give a folder")
    ours = any((bundle_dir / name).exists() for name in (MANIFEST, STAGING))
    foreign = [part for part in PARTS if (bundle_dir / part).exists()]
    if foreign and not ours:
        raise UserError(
            f"--bundle-dir {bundle_dir} holds a folder {foreign[0]} and no {MANIFEST}: this is no finished bundle; "
            "give a folder that is empty or not there yet"
        )


def _is_there(bundle_dir: Path, index: Index, listed: dict[str, dict[str, Any]]) -> bool:
    try:
        if read_manifest(bundle_dir).manifest_sha256 != index.manifest_sha256:
            return False
    except WhisperError:
        return False
    return not compare_contents(bundle_dir, listed) and not extras(bundle_dir, PARTS, listed)


def _restore(folder: Path, staging: Staging) -> None:
    """Write the content of every volume that is there and whole into the files; then name the others."""
    needed = staging.missing()
    for piece in staging.index.pieces:
        if piece.name not in staging.taken:
            staging.file(piece).touch()
    _check_space(folder, needed, staging)
    meter, bad = Meter("unpacking", sum(volume.size for volume in needed)), {}
    for volume in needed:
        state = _restore_volume(folder / volume.name, volume, staging, meter)
        if state:
            bad[volume] = state
        else:
            staging.volumes.add(volume.name)
            staging.note()
    meter.close()
    if bad:
        raise BundleError(_tell_bad(bad, staging.index))


def _restore_volume(file: Path, volume: Volume, staging: Staging, meter: Meter) -> str:
    """Write one volume's content into the files, and return what is wrong with it, or nothing.

    It is read once: what a damaged volume leaves in the files is overwritten when the whole one comes.
    """
    if not file.is_file():
        return "is missing"
    if size_of(file) != volume.size:
        return f"is damaged ({size_of(file):,} bytes instead of {volume.size:,})"
    digest = hashlib.sha256()
    try:
        with _opened(file) as content:
            position = volume.begin
            for piece in staging.pieces_in(volume):
                begin, end = max(piece.begin, volume.begin), min(piece.end, volume.end)
                _copy(content, None, begin - position, digest, meter)
                with open(staging.file(piece), "r+b") as target:
                    target.seek(begin - piece.begin)
                    _copy(content, target, end - begin, digest, meter)
                position = end
            _copy(content, None, volume.end - position, digest, meter)
    except Unreadable as error:
        return f"cannot be read ({error})"
    return "" if digest.hexdigest() == volume.sha256 else "is damaged"


def _opened(file: Path) -> IO[bytes]:
    try:
        return open(file, "rb")
    except OSError as error:
        raise Unreadable(error.strerror) from None


def _copy(content: IO[bytes], target: IO[bytes] | None, count: int, digest: Any, meter: Meter) -> None:
    while count:
        try:
            chunk = content.read(min(CHUNK, count))
        except OSError as error:
            raise Unreadable(error.strerror) from None
        if not chunk:
            raise Unreadable("it ends early")
        if target is not None:
            target.write(chunk)
        digest.update(chunk)
        meter.add(len(chunk))
        count -= len(chunk)


def _tell_bad(bad: dict[Volume, str], index: Index) -> str:
    numbers = {volume: number for number, volume in enumerate(index.volumes, 1)}
    told = [f"volume {numbers[volume]} ({volume.name}) {state}" for volume, state in list(bad.items())[:20]]
    more = f" and {len(bad) - 20} more" if len(bad) > 20 else ""
    them = "it" if len(bad) == 1 else "them"
    return f"{'; '.join(told)}{more}: copy {them} again and repeat the command; what is good is kept"


def _check_space(folder: Path, needed: Sequence[Volume], staging: Staging) -> None:
    wanted = sum(volume.size for volume in needed) + SPARE
    free = shutil.disk_usage(staging.path).free
    if wanted > free:
        raise UserError(
            f"--unpack {folder}: the bundle needs {in_bytes(wanted)} more at {staging.path.parent}, "
            f"and {in_bytes(free)} are free"
        )


def _tell_project(folder: Path, index: Index) -> None:
    """The project that runs this is verified with the bundle; a damaged archive of it is worth a word all the same."""
    with contextlib.suppress(OSError):
        if sha256_of(folder / PROJECT) != index.project:
            log.warning("warning: %s is damaged: copy it again before you unzip it", folder / PROJECT)
