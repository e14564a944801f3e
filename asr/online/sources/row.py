"""Rows: one utterance as a source gives it, and how a record of any table becomes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr.shared.tables.cells import as_text, printable
from asr.shared.tables.columns import Columns
from asr.shared.tables.entries import entry_of
from asr.shared.tables.paths import PathMap

Announce = Callable[[int], None]

SPLIT_NAMES = {"train": "train", "training": "train", "validation": "validation", "valid": "validation"}
SPLIT_NAMES |= {"val": "validation", "dev": "validation", "eval": "validation", "test": "test", "testing": "test"}


@dataclass(frozen=True)
class Row:
    """One utterance as its source gives it.

    Attributes:
        source: name of the source.
        source_id: where the row stands in its source, for reports.
        audio: the file, or its bytes.
        text: what is said, untouched.
        split: train, validation, test, or "" where the source does not say.
        speaker: an identifier, or "" where the source has none.
        group: what must stay on one side of a split, or "".
        refused: why the source itself refuses the row, or "".
        detail: more about that.
    """

    source: str
    source_id: str
    audio: Path | bytes
    text: str
    split: str = ""
    speaker: str = ""
    group: str = ""
    refused: str = ""
    detail: str = ""


def row_from(
    record: Mapping[str, Any], columns: Columns, paths: PathMap, source: str, source_id: str, split: str = ""
) -> Row:
    """Make a row of a record; what cannot be one is a row that is refused, so that it is counted.

    Args:
        record: column to value: text, numbers, None; the audio a path, bytes, or a mapping of `bytes` and `path`.
        columns: which is which.
        paths: for audio that is a path.
        source: name of the source.
        source_id: where the record stands in it.
        split: of the whole table, where it has no column for it.
    """
    entry = entry_of(record, columns, paths)
    audio, refused, detail = entry.audio, entry.refused, entry.detail
    given = as_text(record.get(columns.split)).strip() if columns.split else ""
    known = SPLIT_NAMES.get(given.lower(), "")
    if given and not known and not refused:
        audio, refused = b"", "unknown split"
        detail = f"column {printable(columns.split)} holds '{printable(given)}'"
    return Row(source, source_id, audio, entry.text, known or split, entry.speaker, entry.group, refused, detail)
