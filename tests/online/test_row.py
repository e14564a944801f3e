"""A record of any table becomes a row, and what is bad is refused."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.online.sources.row import Row, row_from
from asr.shared.tables.columns import Columns
from asr.shared.tables.paths import PathMap

COLUMNS = Columns("audio", "text", "speaker", "group", "split")
ROOT = Path("/tables")
modest = settings(deadline=None, max_examples=200, derandomize=True)


def row_of(record: dict[str, Any], rules: tuple[str, ...] = (), **others: str) -> Row:
    return row_from(record, COLUMNS, PathMap(rules, ROOT), "table", "table/calls.csv:2", **others)


def test_a_whole_record() -> None:
    record = {"audio": " a.wav ", "text": " 네 ", "speaker": " 김 ", "group": 17.0, "split": "Dev"}
    assert row_of(record) == Row("table", "table/calls.csv:2", ROOT / "a.wav", " 네 ", "validation", "김", "17")


@pytest.mark.parametrize(
    "audio", [b"RIFF", bytearray(b"RIFF"), memoryview(b"RIFF"), {"bytes": b"RIFF", "path": "a.wav"}]
)
def test_audio_as_bytes(audio: object) -> None:
    assert row_of({"audio": audio, "text": "네"}).audio == b"RIFF"


def test_audio_that_is_only_named_within_a_struct() -> None:
    assert row_of({"audio": {"bytes": None, "path": "a.wav"}, "text": "네"}).audio == ROOT / "a.wav"


@pytest.mark.parametrize("audio", [None, "", " \t", b"", 17, 1.5, [], ["a.wav"], {}, {"bytes": None}, {"path": 3}])
def test_no_audio(audio: object) -> None:
    row = row_of({"audio": audio, "text": "네"})
    assert (row.refused, row.audio, row.text) == ("no audio named", b"", "네")
    assert row.detail.startswith("column audio holds ")


def test_a_missing_cell_is_no_audio() -> None:
    assert row_of({"text": "네"}).refused == "no audio named"
    assert row_of({"audio": "a.wav"}).text == ""


@pytest.mark.parametrize(
    "name", ["train", "Training", " test ", "VALID", "validation", "val", "dev", "eval", "testing"]
)
def test_names_of_splits(name: str) -> None:
    row = row_of({"audio": "a.wav", "text": "네", "split": name}, split="train")
    assert row.split == {"tr": "train", "te": "test"}.get(name.strip().lower()[:2], "validation")
    assert not row.refused


def test_the_split_of_the_whole_table_holds_where_the_column_is_empty() -> None:
    assert row_of({"audio": "a.wav", "text": "네", "split": None}, split="test").split == "test"
    assert row_of({"audio": "a.wav", "text": "네"}).split == ""


def test_an_unknown_split_is_refused() -> None:
    """To train on what was meant to be held out would be worse than to lose it."""
    row = row_of({"audio": "a.wav", "text": "네", "split": "hold\nout"}, split="train")
    assert (row.refused, row.detail) == ("unknown split", "column split holds 'hold\\nout'")


@pytest.mark.parametrize(
    ("column", "cell", "detail"),
    [
        ("audio", "a\0.wav", "column audio holds a NUL character"),
        ("audio", "a\ud800.wav", "column audio holds half a surrogate pair"),
        ("text", "네\0", "column text holds a NUL character"),
        ("text", "네\udc00", "column text holds half a surrogate pair"),
        ("text", ["네", "아니요"], "column text holds a list"),
        ("text", {"ko": "네"}, "column text holds a dict"),
        ("text", "네".encode("cp949"), "column text holds bytes that are no UTF-8"),
        ("speaker", "김\ud800", "column speaker holds half a surrogate pair"),
        ("group", ["a"], "column group holds a list"),
    ],
)
def test_cells_of_which_no_text_can_be_made(column: str, cell: object, detail: str) -> None:
    """They would fail when the bundle or a report is written, or be trained on as "['네', '아니요']"."""
    row = row_of({"audio": "a.wav", "text": "네", column: cell})
    assert (row.refused, row.detail, row.audio, row.text) == ("malformed row", detail, b"", "")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.text())
broken = st.text(st.characters(categories=["Cs", "Cc", "Lo"]))
structs = st.dictionaries(st.sampled_from(["bytes", "path"]), scalars | broken)
names = st.sampled_from(["audio", "text", "speaker", "group", "split"])


@modest
@given(st.dictionaries(names, scalars | broken | structs))
def test_whatever_a_record_holds_it_becomes_a_row_that_can_be_written(record: dict[str, Any]) -> None:
    row = row_of(record)
    assert (row.audio == b"") == bool(row.refused)
    assert row.split in ("", "train", "validation", "test")
    told = [row.source_id, row.text, row.split, row.speaker, row.group, row.refused, row.detail]
    csv.writer(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")).writerow(told)
    assert row.detail.isprintable()
