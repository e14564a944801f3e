"""Rows: one utterance as a source gives it, and how a record of any table becomes one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from config import Source
from utils import UserError

Announce = Callable[[int], None]

# What the columns are called in the wild, the likeliest first.
USUAL = {
    "audio": "audio path audio_path audio_file file_name filename file filepath file_path wav wav_path raw_data"
    " 오디오 음성 녹음 경로 파일 파일명 파일경로",
    "text": "text sentence transcript transcription transcripts normalized_text label 전사 문장 텍스트 발화 대본",
    "speaker": "speaker speaker_id client_id spk spk_id speaker_name 화자 발화자",
    "group": "",
    "split": "split",
}
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


@dataclass(frozen=True)
class Columns:
    """Which column of a table is what; "" for none."""

    audio: str
    text: str
    speaker: str = ""
    group: str = ""
    split: str = ""


def find_columns(names: list[str], wanted: Source, where: str) -> Columns:
    """Find the columns that the configuration names, or else those with usual names, whatever their case.

    Args:
        names: the table's columns.
        wanted: the configuration.
        where: the table, for messages.

    Raises:
        UserError: a column is not there.
    """
    found: dict[str, str] = {}
    lowered = {name.strip().lower(): name for name in reversed(names)}
    for role, usual in USUAL.items():
        named = getattr(wanted, f"{role}_column")
        if named is not None and named not in names:
            raise UserError(f"{where}: there is no column '{named}' (--{role}-column), only {_listed(names)}")
        found[role] = named or next((lowered[name] for name in usual.split() if name in lowered), "")
    for role in ("audio", "text"):
        if not found[role]:
            raise UserError(f"{where}: which column is the {role}? Name it with --{role}-column: {_listed(names)}")
    return Columns(**found)


class PathMap:
    """Turns audio paths as a table has them into paths of this machine.

    Args:
        rules: FROM=TO; the longest FROM that a path begins with, by whole components, is replaced by TO. Slashes and
            backslashes are the same in FROM, and so are upper and lower case in what looks like Windows.
        root: where relative paths start.
    """

    def __init__(self, rules: tuple[str, ...], root: Path) -> None:
        pairs = [rule.partition("=")[::2] for rule in rules]
        self.rules = sorted(((_components(old), new) for old, new in pairs), key=lambda rule: -len(rule[0]))
        self.root = root

    def __call__(self, written: str) -> Path:
        """Return the path on this machine for one that a table has."""
        components = _components(written)
        for old, new in self.rules:
            if components[: len(old)] == old or (_is_windows(written) and _same_letters(components[: len(old)], old)):
                return Path(new).joinpath(*components[len(old) :])
        if os.name != "nt" and "\\" in written and not _is_windows(written):
            # A relative path that was written on Windows.
            mapped = self.root / written
            # Not Path.exists: it raises for a name that is too long.
            return mapped if os.path.exists(mapped) else self.root / "/".join(components)
        return self.root / written


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
    audio = record.get(columns.audio)
    if isinstance(audio, Mapping):
        audio = audio.get("bytes") or audio.get("path")
    if isinstance(audio, bytearray | memoryview):
        audio = bytes(audio)
    rest = {name: record.get(name) for name in (columns.text, columns.speaker, columns.group, columns.split) if name}
    given = as_text(rest[columns.split]).strip() if columns.split else ""
    known = SPLIT_NAMES.get(given.lower(), "")
    flawed = _first_flaw({columns.audio: audio if isinstance(audio, str) else ""} | rest)
    refused, detail = "", ""
    if not audio or not isinstance(audio, bytes | str | os.PathLike) or (isinstance(audio, str) and not audio.strip()):
        refused, detail = "no audio named", f"column {printable(columns.audio)} holds {_short(audio)}"
    elif flawed:
        refused, detail = "malformed row", flawed
    elif given and not known:
        refused, detail = "unknown split", f"column {printable(columns.split)} holds '{printable(given)}'"
    text, speaker, group = (
        as_text(rest.get(name)) if not flawed else "" for name in (columns.text, columns.speaker, columns.group)
    )
    return Row(
        source,
        source_id,
        b"" if refused else audio if isinstance(audio, bytes) else paths(str(audio).strip()),
        text,
        known or split,
        speaker.strip(),
        group.strip(),
        refused,
        detail,
    )


def as_text(value: Any) -> str:
    """Return a cell as text: nothing as "", a whole number that a spreadsheet made a float without its .0."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return str(value)


def flaw(cell: Any) -> str:
    """Say why no text can be made of a cell, or "".

    Half a surrogate pair comes from a broken escape in JSON, and no file could be written with it.
    """
    if isinstance(cell, Mapping | list | tuple | set):
        return f"a {type(cell).__name__}"
    try:
        text = cell.decode() if isinstance(cell, bytes) else cell
        if isinstance(text, str) and b"\0" in text.encode():
            return "a NUL character"
    except UnicodeDecodeError:
        return "bytes that are no UTF-8"
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return ""


def _first_flaw(cells: Mapping[str, Any]) -> str:
    found = ((name, flaw(cell)) for name, cell in cells.items())
    return next((f"column {printable(name)} holds {trouble}" for name, trouble in found if trouble), "")


def _listed(names: list[str]) -> str:
    return ", ".join(map(printable, names[:30])) + (", …" if len(names) > 30 else "")


def printable(text: str, longest: int | None = 40) -> str:
    """Return `text` fit for a message: in one line, with escapes for what has no shape, cut to its beginning."""
    shown = text if longest is None or len(text) <= longest else text[:longest] + "…"
    return shown if shown.isprintable() else repr(shown)[1:-1]


def _components(path: str) -> list[str]:
    """Split a path; doubled slashes and dots within it say nothing, the slashes that it begins with do."""
    parts = path.replace("\\", "/").split("/")
    root = next((place for place, part in enumerate(parts) if part), len(parts) - 1)
    return parts[:root] + [part for part in parts[root:] if part not in ("", ".")] or ["."]


def _is_windows(path: str) -> bool:
    return path.startswith("\\\\") or bool(PureWindowsPath(path).drive)


def _same_letters(left: list[str], right: list[str]) -> bool:
    return [part.casefold() for part in left] == [part.casefold() for part in right]


def _short(value: Any) -> str:
    text = "nothing" if value is None or value in ("", b"") else f"{type(value).__name__} {str(value)[:40]!r}"
    return text.replace("\n", " ")
