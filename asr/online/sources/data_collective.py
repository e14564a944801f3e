"""Mozilla Data Collective: the newest Common Voice of a language, downloaded, checked, and kept.

The package `datacollective` lists and downloads, but verifies nothing: what it leaves is checked here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.online.sources.collective_client import PassingTrouble, ask, check_key, patiently
from asr.shared.progress import progress_bar
from utils import UserError, log, sha256_of, write_atomically, write_json

if TYPE_CHECKING:
    from datacollective import DatasetDetails

# Common Voice Spontaneous Speech, which is listed beside it, has other tables.
SCRIPTED = re.compile(r"common voice scripted speech v?(\d+(?:\.\d+)*)", re.IGNORECASE)
PAGE_SIZE = 100


@dataclass(frozen=True)
class Release:
    """One archive, as the catalogue describes it.

    Attributes:
        dataset_id: what the server calls it.
        name: what people call it, with version and language.
        version: as numbers, which compare.
        filename: of the archive.
        size: bytes.
        sha256: in hexadecimal, or "" where the catalogue has none.
        license: its abbreviation.
        page: address of its page, where its terms are accepted.
    """

    dataset_id: str
    name: str
    version: tuple[int, ...]
    filename: str
    size: int
    sha256: str
    license: str
    page: str


def download(locale: str, folder: Path) -> Path:
    """Bring the newest release of a language into `folder`, once, and return its archive.

    What an interrupted run left is gone on with. The key stands in MDC_API_KEY; MDC_API_URL names another server.

    Args:
        locale: the language, as Common Voice names it.
        folder: where the archive goes, with a small file beside it that remembers its SHA-256.

    Raises:
        UserError: the key or the terms are not accepted, there is no such language, or no room on the disk.
        WhisperError: the server, or the way there, fails again and again.
    """
    check_key()
    release = newest_release(locale)
    about = (release.name, _spelled(release.size), release.license, release.dataset_id, release.page)
    log.info("%s: %s, %s, id %s, %s", *about)
    archive = folder / release.filename
    folder.mkdir(parents=True, exist_ok=True)
    if not _take_stock(archive, release):
        _check_room(archive, release)
        try:
            patiently(lambda: _fetch(archive, release), lambda: _size(_part(archive)))
        except KeyboardInterrupt:
            log.info("what has come of %s is kept; the same command goes on from there", archive.name)
            raise
    return archive


# The catalogue


def newest_release(locale: str) -> Release:
    """Find the newest scripted release of a language in the catalogue; this needs no key.

    Raises:
        UserError: there is none.
        WhisperError: the server does not answer, or not as expected.
    """
    listed = _catalogue(locale)
    releases = [release for release in map(_release, listed) if release]
    if not releases:
        others = ", ".join(sorted(str(entry.name) for entry in listed)[:3]) or "nothing"
        raise UserError(
            f"Mozilla Data Collective has no Common Voice Scripted Speech of the language '{locale}' (but {others}): "
            "set --language-abbr, or give a release on disk with --common-voice"
        )
    # Of one version there may be excerpts besides, as of one dialect: the whole is the largest.
    return max(releases, key=lambda release: (release.version, release.size))


def _catalogue(locale: str) -> list[DatasetDetails]:
    """Return all that the catalogue lists as Common Voice in a language, page by page."""
    from datacollective import list_datasets

    found: list[DatasetDetails] = []
    for number in itertools.count(1):
        wanted: dict[str, Any] = {"locale": locale, "task": "ASR", "results_per_page": PAGE_SIZE, "page_number": number}
        page = patiently(functools.partial(ask, list_datasets, "common voice", **wanted))
        found += page.items
        if not page.items or len(found) >= page.total:
            break
    return [entry for entry in found if (entry.locale or "").lower() == locale.lower()]


def _release(entry: DatasetDetails) -> Release | None:
    """Read an entry of the catalogue; None where it is no scripted release, or has no file to download."""
    version = SCRIPTED.match(entry.name or "")
    if not version:
        return None
    filename, size, sha256 = entry.filename or "", int(entry.sizeBytes or 0), (entry.checksum or "").lower()
    # The name becomes a path, so it must not be one.
    if not filename or set(filename) & set('/\\:"\0') or filename.startswith(".") or size <= 0:
        log.warning("%s is passed over: the catalogue names no usable file for it", entry.name)
        return None
    return Release(
        entry.id,
        str(entry.name),
        tuple(map(int, version[1].split("."))),
        filename,
        size,
        sha256 if re.fullmatch("[0-9a-f]{64}", sha256) else "",
        entry.licenseAbbreviation or entry.license or "no license named",
        entry.datasetUrl or f"https://mozilladatacollective.com/datasets/{entry.id}",
    )


# The archive


def _fetch(archive: Path, release: Release) -> None:
    """Try once to bring the archive, from the beginning or from where the last attempt ended."""
    from datacollective import download_dataset

    if _take_stock(archive, release):
        return
    terms = f"{release.page} ({release.name})"
    try:
        with _watched(archive, release.size):
            ask(download_dataset, release.dataset_id, str(archive.parent), show_progress=False, terms=terms)
    except PassingTrouble as trouble:
        if trouble.status == 416:
            # The server's file ends where our part does, and yet the part is short: it cannot be gone on with.
            _part(archive).unlink(missing_ok=True)
        raise
    if not _take_stock(archive, release):
        raise PassingTrouble("the file that came is not the one that the catalogue describes")


def _take_stock(archive: Path, release: Release) -> bool:
    """Look at what earlier attempts left, and return whether the archive is there and right.

    A short archive becomes the part that the package goes on with, a part that is complete becomes the archive, and
    what is wrong is removed: the package itself would take a wrong archive, and stumble over a complete part for ever.
    """
    part = _part(archive)
    if archive.exists() and archive.stat().st_size < release.size and not part.exists():
        os.replace(archive, part)
        write_atomically(archive.with_name(f"{archive.name}.checksum"), release.sha256)
    if _size(part) >= release.size:
        os.replace(part, archive)
    if not archive.exists():
        return False
    wrong = _wrong_with(archive, release)
    if wrong:
        log.info("%s is removed: %s", archive, wrong)
        archive.unlink()
    return not wrong


def _wrong_with(archive: Path, release: Release) -> str:
    """Compare an archive with the catalogue; what was right once is not read again while its file is untouched."""
    state = archive.stat()
    if state.st_size != release.size:
        return f"it has {state.st_size} bytes, not {release.size}"
    if not release.sha256:
        log.warning("the catalogue has no SHA-256 of %s: only its size was checked", archive.name)
        return ""
    mark = archive.with_name(f"{archive.name}.verified")
    verified = {"sha256": release.sha256, "size": state.st_size, "mtime_ns": state.st_mtime_ns}
    with contextlib.suppress(OSError, ValueError):
        if json.loads(mark.read_text(encoding="utf-8")) == verified:
            return ""
    log.info("checking the SHA-256 of %s", archive)
    if sha256_of(archive) != release.sha256:
        return "its SHA-256 is not the one in the catalogue"
    write_json(mark, verified)
    return ""


def _check_room(archive: Path, release: Release) -> None:
    """Look whether the disk takes the rest of the archive, and what it unpacks to.

    Raises:
        UserError: it does not.
    """
    if not os.access(archive.parent, os.W_OK):
        raise UserError(f"{archive.parent} cannot be written: choose another place with --bundle-dir")
    needed = 2 * release.size - _size(_part(archive))
    free = shutil.disk_usage(archive.parent).free
    if free < needed:
        raise UserError(
            f"{archive.parent} has {_spelled(free)} free, but {release.name} needs {_spelled(needed)} to be downloaded "
            "and unpacked: make room, or choose another place with --bundle-dir"
        )


@contextlib.contextmanager
def _watched(archive: Path, total: int) -> Iterator[None]:
    """Show how the part grows. The package's own bar is drawn on standard output, where results stand."""
    part, over = _part(archive), threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            bar.update(max(_size(part) - bar.n, 0))

    with progress_bar(desc=archive.name, total=total, initial=_size(part), unit="B", unit_scale=True) as bar:
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            bar.update(max(_size(part), _size(archive)) - bar.n)


def _part(archive: Path) -> Path:
    """Where the package puts what has come so far."""
    return archive.with_name(f"{archive.name}.part")


def _size(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


def _spelled(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
