"""Clips of a table of one's own: csv, tsv, jsonl, parquet or xlsx, that names audio files or holds them."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from asr.offline.hearing import Clip
from asr.shared.audio import AudioError, read_file
from asr.shared.tables.cells import as_text, printable
from asr.shared.tables.columns import find_columns, named_columns
from asr.shared.tables.entries import entry_of
from asr.shared.tables.formats import open_table
from asr.shared.tables.paths import PathMap
from asr.shared.tables.records import Malformed
from config import TableColumns
from utils import UserError

TEST = ("test", "testing")


def clips_of_table(path: Path, columns: TableColumns, flag: str) -> list[Clip]:
    """Read the rows of a table; those of which no clip can be made have a sound that says why.

    Of a table whose split column names test rows only these are measured: the others may have been trained on.

    Audio that the table itself holds stays in memory, in the format in which it is stored there.

    Args:
        path: the table.
        columns: which is which, and where the audio lies.
        flag: what named the table; messages begin with it.

    Raises:
        UserError: the table is missing or damaged, or lacks a column.
    """
    root = columns.audio_root
    if root is not None and not os.path.isdir(root):
        raise UserError(f"--audio-root {root}: there is no such folder")
    table = open_table(path, flag)
    found = find_columns(table.names, named_columns(columns), f"{flag} {path}")
    paths = PathMap(columns.path_map, root or path.parent)
    name = printable(path.stem, None)
    clips: list[Clip] = []
    splits: dict[int, str] = {}
    for number, record in table.records(found):
        source_id = f"{name}:{number}"
        if isinstance(record, Malformed):
            clips.append(Clip(source_id, "", None, None, partial(_refuse, "malformed row", record.detail)))
            continue
        entry = entry_of(record, found, paths)
        sound = partial(_refuse, entry.refused, entry.detail) if entry.refused else partial(_content, entry.audio)
        clips.append(Clip(source_id, entry.text, entry.speaker or None, None, sound))
        splits[len(clips) - 1] = as_text(record.get(found.split)).strip()
    if any(split.lower() in TEST for split in splits.values()):
        for at, split in splits.items():
            if split.lower() not in TEST:
                detail = f"column {printable(found.split)} holds '{printable(split)}'"
                clips[at] = replace(clips[at], sound=partial(_refuse, "not of the test split", detail))
    return clips


def _content(audio: Path | bytes) -> bytes:
    return audio if isinstance(audio, bytes) else read_file(audio)


def _refuse(reason: str, detail: str) -> NoReturn:
    raise AudioError(detail, reason)
