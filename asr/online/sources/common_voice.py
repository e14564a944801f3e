"""Where speech comes from: each source yields rows, in one shape, for preparation to judge.

A new source is a function that yields `Row`s, and a line in `read_rows`.
"""

from __future__ import annotations

import csv
import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from config import Data, Whisper
from utils import UserError, folder_made_whole, log

GZIP = b"\x1f\x8b"
SPLITS = {"train": "train", "dev": "validation", "test": "test"}


@dataclass(frozen=True)
class Row:
    """One utterance as its source gives it.

    Attributes:
        split: train, validation or test.
        audio: the file.
        text: what is said, untouched.
        speaker: an identifier, or "" where the source has none.
        source_id: where the row stands in its source, for reports.
    """

    split: str
    audio: Path
    text: str
    speaker: str
    source_id: str


def read_rows(data: Data, whisper: Whisper, unpack_dir: Path) -> Iterator[Row]:
    """Yield the rows of the source that the configuration names.

    Raises:
        UserError: what is named is not a source.
    """
    yield from read_common_voice(check_source(data, whisper), whisper.language_abbr, unpack_dir)


def check_source(data: Data, whisper: Whisper) -> Path:
    """Look whether a source is named and what it should be, before anything long begins.

    Raises:
        UserError: it is not.
    """
    if data.common_voice is None:
        raise UserError("no speech is named: give --common-voice PATH (a .tar.gz or its folder), or try --demo")
    if not data.common_voice.exists():
        raise UserError(f"--common-voice {data.common_voice}: there is no such file or folder")
    if data.common_voice.is_dir():
        _locale_folder(data.common_voice, data.common_voice, whisper.language_abbr)
    return data.common_voice


def read_common_voice(release: Path, locale: str, unpack_dir: Path) -> Iterator[Row]:
    """Yield the train, dev and test rows of a Common Voice release: its .tar.gz, or the folder it unpacks to."""
    folder = _locale_folder(release if release.is_dir() else _unpack(release, unpack_dir), release, locale)
    for name, split in SPLITS.items():
        table = folder / f"{name}.tsv"
        if not table.is_file():
            raise UserError(f"--common-voice {release}: {table.name} is missing beside {folder / 'clips'}")
        yield from _read_table(table, split)


def _read_table(table: Path, split: str) -> Iterator[Row]:
    try:
        yield from _parse_table(table, split)
    except UnicodeDecodeError as error:
        raise UserError(f"{table} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None


def _parse_table(table: Path, split: str) -> Iterator[Row]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        # Common Voice writes its tables without quoting: a quotation mark is part of the sentence.
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        lacking = {"client_id", "path", "sentence"} - set(reader.fieldnames or [])
        if lacking:
            raise UserError(f"{table}: the column {sorted(lacking)[0]} is missing")
        for number, row in enumerate(reader, start=2):
            name = row["path"] or ""
            yield Row(
                split,
                table.parent / "clips" / name,
                row["sentence"] or "",
                row["client_id"] or "",
                f"common_voice/{table.name}:{number} {name}",
            )


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


def _unpack(archive: Path, unpack_dir: Path) -> Path:
    """Unpack a release once; paths that would leave the folder, links and devices are refused by the filter."""
    done = unpack_dir / f"{archive.name}.{archive.stat().st_size}"
    if not done.is_dir():
        log.info("unpacking %s into %s (may be deleted when the setup is done)", archive, done)
        try:
            with folder_made_whole(done, durable=False) as folder:
                _unpack_into(archive, folder)
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--common-voice {archive} cannot be unpacked: {reason}; fetch it again") from None
        except OSError as error:
            raise UserError(f"--common-voice {archive} cannot be unpacked: {error.strerror} ({done})") from None
    return done


def _unpack_into(archive: Path, folder: Path) -> None:
    with open(archive, "rb") as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if packed else file
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            tar.extractall(folder, filter="data")
        # The checksum stands at the very end, behind what tar reads: without this, damaged clips would pass.
        while stream.read(1 << 20):
            pass
