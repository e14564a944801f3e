"""Recordings of your own, in files: tables that name audio and text, and folders where a text lies beside each clip."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from asr.online.sources.row import Announce, Row, row_from
from asr.shared.audio import AUDIO_ENDINGS, is_audio
from asr.shared.tables.cells import flaw, printable
from asr.shared.tables.columns import Columns, find_columns, named_columns
from asr.shared.tables.encoding import decode
from asr.shared.tables.formats import open_table
from asr.shared.tables.paths import PathMap
from asr.shared.tables.records import Malformed, Table
from config import Data
from utils import UserError

LARGEST_TEXT = 1 << 20


# Tables


def check(data: Data) -> None:
    """Look whether every table is there, readable, and has the columns.

    Raises:
        UserError: one is not.
    """
    root = data.columns.audio_root
    if root is not None and not os.path.isdir(root):
        raise UserError(f"--audio-root {root}: there is no such folder")
    for path in data.files.table:
        table, columns = _open(path, data)
        next(table.records(columns), None)


def read(data: Data, announce: Announce) -> Iterator[Row]:
    """Yield the rows of every table; those that cannot be read are refused as "malformed row".

    Raises:
        UserError: a table is missing, damaged, empty, or lacks a column.
    """
    for path, name in _short_names(data.files.table):
        table, columns = _open(path, data)
        paths = PathMap(data.columns.path_map, data.columns.audio_root or path.parent)
        announce(table.count())
        for number, record in table.records(columns):
            source_id = f"table/{name}:{number}"
            if isinstance(record, Malformed):
                yield Row("table", source_id, b"", "", refused="malformed row", detail=record.detail)
            else:
                yield row_from(record, columns, paths, "table", source_id)


def _open(path: Path, data: Data) -> tuple[Table, Columns]:
    if os.path.isdir(path):
        raise UserError(f"--table {path} is a folder: name the table in it, or give --folder {path}")
    table = open_table(path, "--table")
    return table, find_columns(table.names, named_columns(data.columns, data.source), f"--table {path}")


# Folders


def check_folders(data: Data) -> None:
    """Look whether every folder is there and holds audio.

    Raises:
        UserError: one does not.
    """
    for folder in data.files.folder:
        if not os.path.isdir(folder):
            raise UserError(f"--folder {folder}: there is no such folder")
        if not any(is_audio(name) for _, names in _walk(folder) for name in names):
            raise UserError(f"--folder {folder}: no audio file is in it ({AUDIO_ENDINGS})")


def read_folders(data: Data, announce: Announce) -> Iterator[Row]:
    """Yield a row for every audio file, with the text beside it; what lacks its other half is refused.

    Raises:
        UserError: a folder is missing, cannot be read, or holds no audio.
    """
    check_folders(data)
    for folder, name in _short_names(data.files.folder):
        announce(sum(1 for _ in _pairs(folder)))
        for audio, text in _pairs(folder):
            clip = printable(Path(audio or text or "").relative_to(folder).as_posix(), None)
            yield _folder_row(audio, text, f"folder/{name}/{clip}")


def _folder_row(audio: Path | None, text: Path | None, source_id: str) -> Row:
    if audio is None:
        return Row("folder", source_id, b"", "", refused="no audio file beside it")
    if text is None:
        return Row("folder", source_id, b"", "", refused="no text file beside it")
    try:
        if text.stat().st_size > LARGEST_TEXT:
            raise UnicodeError(f"{text.stat().st_size} bytes are no text of one clip")
        said = decode(text.read_bytes())
        if trouble := flaw(said):
            raise UnicodeError(trouble)
    except (OSError, UnicodeError) as error:
        detail = getattr(error, "strerror", None) or str(error)
        return Row("folder", source_id, b"", "", refused="unreadable text file", detail=detail)
    return Row("folder", source_id, audio, said)


def _pairs(folder: Path) -> Iterator[tuple[Path, Path | None] | tuple[None, Path]]:
    """Yield each audio file with its text file or None, and None with each text file that has no audio file."""
    for place, names in _walk(folder):
        audio = [name for name in names if is_audio(name)]
        texts = {_stem(name): name for name in reversed(names) if name.lower().endswith(".txt")}
        paired = {texts.get(_stem(name)) for name in audio}
        for name in names:
            if is_audio(name):
                text = texts.get(_stem(name))
                yield place / name, place / text if text else None
            elif name.lower().endswith(".txt") and name not in paired:
                yield None, place / name


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder in any depth and its files, sorted; what is hidden is passed over, links are followed once."""

    def refuse(error: OSError) -> None:
        raise UserError(f"--folder {folder} cannot be read: {error.strerror} ({error.filename})")

    seen = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        here = os.path.realpath(place)
        folders[:] = [] if here in seen else sorted(name for name in folders if not name.startswith("."))
        if here not in seen:
            yield Path(place), sorted(name for name in names if not name.startswith("."))
        seen.add(here)


def _stem(name: str) -> str:
    # macOS takes Korean names apart into letters; the other half may have come from elsewhere.
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])


def _short_names(paths: tuple[Path, ...]) -> list[tuple[Path, str]]:
    """Return each path once, with as much of its end as tells it from the others."""
    distinct: dict[tuple[str, ...], Path] = {}
    for path in paths:
        distinct.setdefault(Path(os.path.abspath(path)).parts, path)
    depth = 1
    while len({parts[-depth:] for parts in distinct}) < len(distinct):
        depth += 1
    return [(path, printable("/".join(parts[-depth:]), None)) for parts, path in distinct.items()]
