"""Common Voice: a release of Mozilla's, as the folder it unpacks to, as its .tar.gz, or downloaded."""

from __future__ import annotations

import contextlib
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from gzip import GzipFile
from pathlib import Path
from typing import BinaryIO

from asr.online.sources.collective_client import check_key
from asr.online.sources.data_collective import download
from asr.online.sources.row import Announce, Row
from asr.shared.progress import progress_bar
from config import CommonVoice
from utils import UserError, folder_made_whole, log

GZIP = b"\x1f\x8b"
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
COLUMNS = ("client_id", "path", "sentence")


def check(wanted: CommonVoice, locale: str) -> None:
    """Look whether a release is named or can be downloaded, before anything long begins; asks no network.

    Raises:
        UserError: neither; or what is named is no release, or lacks a table.
    """
    release = wanted.common_voice
    if release is None:
        check_key()
    elif not release.exists():
        raise UserError(f"--common-voice {release}: there is no such file or folder")
    elif release.is_dir():
        _tables(_locale_folder(release, release, locale), release, wanted.common_voice_splits)
    else:
        with _told_as_damage(release), tarfile.open(release):
            pass


def read(wanted: CommonVoice, locale: str, work_dir: Path, announce: Announce = lambda count: None) -> Iterator[Row]:
    """Yield the rows of train, dev and test, then those of further tables as training rows.

    Args:
        wanted: the release, and which further tables; without a release the newest one is downloaded.
        locale: the language's folder in the release.
        work_dir: where an archive is downloaded to and unpacked; both are done once.
        announce: called with the number of rows of each table, before its first row.

    Raises:
        UserError: what is named is no release, or lacks a table; or the download needs the user.
        WhisperError: the download failed.
    """
    release = wanted.common_voice or download(locale, work_dir)
    folder = _locale_folder(release if release.is_dir() else _unpack(release, work_dir), release, locale)
    further = wanted.common_voice_splits
    clips: dict[Path | bytes, str] = {}
    held_out: dict[str, str] = {}
    for table in _tables(folder, release, further):
        announce(max(sum(1 for _ in _records(table)) - 1, 0))
        own: dict[Path | bytes, str] = {}
        for row in _rows(table, SPLITS.get(table.stem, "train")):
            yield row if table.stem in SPLITS else _unless_known(row, clips, held_out)
            if further and not row.refused:
                own[row.audio] = table.name
            if row.split != "train" and (row.speaker or not row.refused):
                held_out[row.speaker] = table.name
        clips |= own


def _unless_known(row: Row, clips: dict[Path | bytes, str], held_out: dict[str, str]) -> Row:
    """Refuse a row of a further table whose clip stands in an earlier one, or whose speaker is in dev or test.

    Args:
        row: as it stands in its table.
        clips: clip to the earlier table that has it.
        held_out: speaker to dev or test.
    """
    if row.refused:
        return row
    if row.audio in clips:
        return replace(row, refused="already in another table", detail=clips[row.audio])
    if row.speaker in held_out:
        return replace(row, refused="speaker is in dev or test", detail=held_out[row.speaker])
    return row


# Tables


def _tables(folder: Path, release: Path, further: tuple[str, ...]) -> list[Path]:
    """Return the tables to read, in order.

    Raises:
        UserError: one is missing.
    """
    for name in SPLITS:
        if not (folder / f"{name}.tsv").is_file():
            raise UserError(f"--common-voice {release}: {name}.tsv is missing beside {folder / 'clips'}")
    for name in further:
        if not (folder / f"{name}.tsv").is_file():
            there = ", ".join(sorted(table.stem for table in folder.glob("*.tsv") if table.stem not in SPLITS))
            raise UserError(
                f"--common-voice-splits {name}: {name}.tsv is missing in {folder}; there is {there or 'no more'}"
            )
    return [folder / f"{name}.tsv" for name in dict.fromkeys((*SPLITS, *further))]


def _rows(table: Path, split: str) -> Iterator[Row]:
    records = _records(table)
    _, header = next(records, (0, []))
    for column in COLUMNS:
        if column not in header:
            raise UserError(f"{table}: the column {column} is missing")
    speaker, name, sentence = (header.index(column) for column in COLUMNS)
    for number, cells in records:
        where = f"common_voice/{table.name}:{number}"
        if len(cells) != len(header):
            detail = f"{len(cells)} cells, but the header has {len(header)}"
            yield Row("common-voice", where, b"", "", split, refused="malformed row", detail=detail)
            continue
        clip = Path(cells[name].strip())
        refused, detail = "", ""
        if not clip.name:
            refused, detail = "no audio named", "column path holds nothing"
        elif clip.anchor or ".." in clip.parts or "\0" in clip.name:
            refused, detail = "malformed row", "column path names nothing in the folder of clips"
        audio = b"" if refused else table.parent / "clips" / clip
        text, client = cells[sentence], cells[speaker].strip()
        yield Row("common-voice", f"{where} {cells[name]}", audio, text, split, client, refused=refused, detail=detail)


def _records(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of every line that is not blank, the header first.

    Common Voice writes its tables without quoting: a quotation mark is part of the sentence, and only a tab and a line
    feed mean anything.
    """
    with open(table, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise UserError(f"{table}: line {number} is not UTF-8: save the table as UTF-8") from None
            if text:
                yield number, text.split("\t")


# The release


def _locale_folder(root: Path, release: Path, locale: str) -> Path:
    """Find the folder that holds train.tsv: a release nests it as cv-corpus-…/<locale>/."""
    candidates = [root, *(found.parent for depth in ("*", "*/*") for found in root.glob(f"{depth}/train.tsv"))]
    holding = [folder for folder in candidates if (folder / "train.tsv").is_file()]
    matching = [folder for folder in holding if folder.resolve().name == locale]
    # A folder that is named by hand may be called anything; inside a release the name is the language.
    if matching or holding == [root]:
        return (matching or holding)[0]
    if holding:
        found = ", ".join(sorted(folder.name for folder in holding))
        raise UserError(f"--common-voice {release} has no language '{locale}', only {found}: set --language-abbr")
    raise UserError(f"--common-voice {release}: no train.tsv is in it, so it is no Common Voice release")


def _unpack(archive: Path, work_dir: Path) -> Path:
    """Unpack a release once; paths that would leave the folder, links and devices are refused by the filter."""
    done = work_dir / f"{archive.name}.{archive.stat().st_size}"
    if not done.is_dir():
        log.info("unpacking %s into %s (may be deleted when the setup is done)", archive, done)
        with _told_as_damage(archive, done), folder_made_whole(done, durable=False) as folder:
            _unpack_into(archive, folder)
    return done


def _unpack_into(archive: Path, folder: Path) -> None:
    with open(archive, "rb") as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        stream: BinaryIO = GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            tar.extractall(folder, members=_watched(tar, file), filter="data")
        # The checksum stands at the very end, behind what tar reads: without this, damaged clips would pass.
        while stream.read(1 << 20):
            pass


def _watched(tar: tarfile.TarFile, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive, showing how much of its file they have taken."""
    size = Path(file.name).stat().st_size
    with progress_bar(desc="unpacking", total=size, unit="B", unit_scale=True) as bar:
        for member in tar:
            yield member
            bar.update(file.tell() - bar.n)


@contextlib.contextmanager
def _told_as_damage(archive: Path, target: Path | None = None) -> Iterator[None]:
    """Turn what reading a damaged archive, or writing into a full disk, raises into one line."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"--common-voice {archive} cannot be unpacked: {reason}; fetch it again") from None
    except OSError as error:
        # gzip.BadGzipFile is an OSError too, but no error of the system's.
        reason = f"{error.strerror} ({target or archive})" if error.strerror else f"{error}; fetch it again"
        raise UserError(f"--common-voice {archive} cannot be unpacked: {reason}") from None
