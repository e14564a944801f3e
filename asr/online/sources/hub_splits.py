"""Splits of a dataset on the Hugging Face Hub: parquet files, or an audio folder with its metadata."""

from __future__ import annotations

import json
import posixpath
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asr.online.sources.hub_files import Repository, fetch
from asr.shared.tables.binary_table import parquet_table
from asr.shared.tables.columns import Columns, find_columns
from asr.shared.tables.records import Malformed, Table
from asr.shared.tables.text_table import delimited_table, json_table
from utils import UserError

METADATA = {"metadata.csv": delimited_table, "metadata.jsonl": json_table, "metadata.parquet": parquet_table}
Record = dict[str, Any] | Malformed
# Role to column, where one is named.
Named = Mapping[str, str]


@dataclass(frozen=True)
class Split:
    """A split whose files are here.

    Attributes:
        count: of its rows.
        columns: which is which.
        records: its rows.
        files: which rows may name.
    """

    count: int
    columns: Columns
    records: Iterator[Record]
    files: frozenset[Path] = frozenset()


def open_parquet(repository: Repository, names: list[str], named: Named) -> Split:
    """Download the parquet files of a split; their rows are read a few at a time, and only the columns needed.

    Raises:
        UserError: they cannot be had, are damaged, or lack a column.
    """
    paths = fetch(repository, names)
    tables = _tables(repository, paths)
    if "audio" not in named and (audio := _audio_column(paths[names[0]])):
        named = {**named, "audio": audio}
    columns = _columns(repository, tables, named)

    def records() -> Iterator[Record]:
        for name, table in tables.items():
            with _told_of(paths[name]):
                for _, record in table.records(columns):
                    yield record

    return Split(sum(table.count() for table in tables.values()), columns, records())


def _audio_column(path: Path) -> str | None:
    """Return the column that holds audio by its type, or None where several do, or none."""
    from pyarrow import types
    from pyarrow.parquet import read_schema

    schema = read_schema(path)
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"].items()
    except (AttributeError, KeyError, TypeError, ValueError):
        # Not written by `datasets`.
        features = ()
    audio = [name for name, feature in features if isinstance(feature, dict) and feature.get("_type") == "Audio"]
    audio = audio or [part.name for part in schema if types.is_struct(part.type) and "bytes" in part.type.names]
    return audio[0] if len(audio) == 1 else None


def open_folder(repository: Repository, names: list[str], named: Named) -> Split:
    """Download a split of an audio folder: the metadata, and the files beside it that it names.

    Raises:
        UserError: they cannot be had, or the metadata is missing, damaged or lacks a column.
    """
    own = [name for name in names if posixpath.basename(name) in METADATA]
    # One that lies above the folders of several splits is of all of them.
    metadata = own or [name for name in repository.sizes if posixpath.basename(name) in METADATA]
    if not metadata:
        raise UserError(
            f"{repository.flag}: no metadata.csv and no metadata.jsonl says what is said in its audio files"
        )
    paths = fetch(repository, metadata)
    if named.get("audio", "audio") == "audio":
        # The Hub's viewer calls it audio.
        named = {**named, "audio": "file_name"}
    tables = _tables(repository, paths)
    columns = _columns(repository, tables, named)
    here = fetch(repository, [name for name in names if name not in own])
    audio = {_composed(name): str(path) for name, path in here.items()}
    elsewhere = set() if own else {_composed(name) for name in repository.sizes} - audio.keys()
    records: list[Record] = []
    for name, table in tables.items():
        with _told_of(paths[name]):
            records += _with_paths(table, columns, posixpath.dirname(name), audio, elsewhere)
    told = {record.get(columns.audio) for record in records if isinstance(record, dict)}
    # A file without a line is a row without a text, so that it is counted among what is dropped.
    records += [{columns.audio: path} for path in audio.values() if path not in told]
    return Split(len(records), columns, iter(records), frozenset(here.values()))


def _with_paths(
    table: Table, columns: Columns, folder: str, audio: Mapping[str, str], elsewhere: set[str]
) -> Iterator[Record]:
    """Yield the lines of a metadata file, without those of other splits; the audio as its path here."""
    for _, record in table.records(columns):
        if isinstance(record, dict) and isinstance(record.get(columns.audio), str):
            name = _composed(posixpath.normpath(posixpath.join(folder, record[columns.audio])))
            if name in elsewhere:
                continue
            record = record | {columns.audio: audio.get(name, record[columns.audio])}
        yield record


def _tables(repository: Repository, paths: Mapping[str, Path]) -> dict[str, Table]:
    tables = {}
    for name, path in paths.items():
        with _told_of(path):
            tables[name] = METADATA.get(posixpath.basename(name), parquet_table)(path, f"{repository.flag}: {name}")
    return tables


def _columns(repository: Repository, tables: Mapping[str, Table], named: Named) -> Columns:
    first = next(iter(tables))
    columns = find_columns(tables[first].names, named, repository.flag)
    # The dataset's own splits count, unless a column is named.
    columns = replace(columns, split=named.get("split", ""))
    for name, table in tables.items():
        lacking = {column for column in vars(columns).values() if column} - set(table.names)
        if lacking:
            raise UserError(f"{repository.flag}: {name} lacks the column '{min(lacking)}' that {first} has")
    return columns


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Say of a file with which something is wrong where it lies."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error} (so it is on the Hub; here: {path})") from None


def _composed(name: str) -> str:
    # macOS takes Korean names apart into letters; a table may have them whole.
    return unicodedata.normalize("NFC", name)
