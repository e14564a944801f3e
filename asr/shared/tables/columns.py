"""Columns: which of a table's is the audio, which the text, and so on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asr.shared.tables.cells import printable
from config import Source, TableColumns
from utils import UserError

# What the columns are called in the wild, the likeliest first.
USUAL = {
    "audio": "audio path audio_path audio_file file_name filename file filepath file_path wav wav_path raw_data"
    " 오디오 음성 녹음 경로 파일 파일명 파일경로",
    "text": "text sentence transcript transcription transcripts normalized_text label 전사 문장 텍스트 발화 대본",
    "speaker": "speaker speaker_id client_id spk spk_id speaker_name 화자 발화자",
    "group": "",
    "split": "split",
}


@dataclass(frozen=True)
class Columns:
    """Which column of a table is what; "" for none."""

    audio: str
    text: str
    speaker: str = ""
    group: str = ""
    split: str = ""


def named_columns(*groups: TableColumns | Source) -> dict[str, str]:
    """Return role to column, as far as a configuration names columns."""
    values = {name: value for group in groups for name, value in vars(group).items()}
    named = {role: values.get(f"{role}_column") for role in USUAL}
    return {role: name for role, name in named.items() if name is not None}


def find_columns(names: list[str], named: Mapping[str, str], where: str) -> Columns:
    """Find the columns that the configuration names, or else those with usual names, whatever their case.

    Args:
        names: the table's columns.
        named: role to column, as far as the user names them (`named_columns`).
        where: the table, for messages.

    Raises:
        UserError: a column is not there.
    """
    found: dict[str, str] = {}
    lowered = {name.strip().lower(): name for name in reversed(names)}
    for role, usual in USUAL.items():
        if role in named and named[role] not in names:
            raise UserError(f"{where}: there is no column '{named[role]}' (--{role}-column), only {_listed(names)}")
        found[role] = named.get(role) or next((lowered[name] for name in usual.split() if name in lowered), "")
    for role in ("audio", "text"):
        if not found[role]:
            raise UserError(f"{where}: which column is the {role}? Name it with --{role}-column: {_listed(names)}")
    return Columns(**found)


def _listed(names: list[str]) -> str:
    return ", ".join(map(printable, names[:30])) + (", …" if len(names) > 30 else "")
