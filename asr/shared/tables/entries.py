"""Entries: what a record of any table says of one utterance, or why it says nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr.shared.tables.cells import as_text, flaw, printable
from asr.shared.tables.columns import Columns
from asr.shared.tables.paths import PathMap


@dataclass(frozen=True)
class Entry:
    """One utterance as a record has it.

    Attributes:
        audio: the file, or its bytes; b"" where the record is refused.
        text: what is said, untouched.
        speaker, group: identifiers, or "".
        refused: why no utterance can be made of the record, or "".
        detail: more about that.
    """

    audio: Path | bytes
    text: str
    speaker: str
    group: str
    refused: str = ""
    detail: str = ""


def entry_of(record: Mapping[str, Any], columns: Columns, paths: PathMap) -> Entry:
    """Read the cells of a record; what is wrong with them is told in the entry, so that it is counted.

    Args:
        record: column to value: text, numbers, None; the audio a path, bytes, or a mapping of `bytes` and `path`.
        columns: which is which.
        paths: for audio that is a path.
    """
    audio = record.get(columns.audio)
    if isinstance(audio, Mapping):
        audio = audio.get("bytes") or audio.get("path")
    if isinstance(audio, bytearray | memoryview):
        audio = bytes(audio)
    rest = {name: record.get(name) for name in (columns.text, columns.speaker, columns.group, columns.split) if name}
    flawed = _first_flaw({columns.audio: audio if isinstance(audio, str) else ""} | rest)
    refused, detail = "", ""
    if not audio or not isinstance(audio, bytes | str | os.PathLike) or (isinstance(audio, str) and not audio.strip()):
        refused, detail = "no audio named", f"column {printable(columns.audio)} holds {_short(audio)}"
    elif flawed:
        refused, detail = "malformed row", flawed
    text, speaker, group = (
        as_text(rest.get(name)) if not flawed else "" for name in (columns.text, columns.speaker, columns.group)
    )
    found = b"" if refused else audio if isinstance(audio, bytes) else paths(str(audio).strip())
    return Entry(found, text, speaker.strip(), group.strip(), refused, detail)


def _first_flaw(cells: Mapping[str, Any]) -> str:
    found = ((name, flaw(cell)) for name, cell in cells.items())
    return next((f"column {printable(name)} holds {trouble}" for name, trouble in found if trouble), "")


def _short(value: Any) -> str:
    text = "nothing" if value is None or value in ("", b"") else f"{type(value).__name__} {str(value)[:40]!r}"
    return text.replace("\n", " ")
