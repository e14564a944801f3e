"""Columns are found by their usual names, or as the user names them; what is missing is told in one line."""

from __future__ import annotations

import pytest

from asr.shared.tables.columns import Columns, find_columns, named_columns
from config import Source, TableColumns
from utils import UserError


def test_usual_names_are_found_whatever_their_case() -> None:
    assert find_columns(["ID", "Path", "SENTENCE", "client_id"], {}, "t") == Columns("Path", "SENTENCE", "client_id")
    assert find_columns([" audio ", "text"], {}, "t") == Columns(" audio ", "text")
    assert find_columns(["raw_data", "label", "split"], {}, "t") == Columns("raw_data", "label", split="split")


def test_the_likeliest_of_several_names_is_taken() -> None:
    names = ["path", "audio", "transcript", "text", "spk", "speaker"]
    assert find_columns(names, {}, "t") == Columns("audio", "text", "speaker")


def test_of_names_that_differ_in_case_the_first_is_taken() -> None:
    assert find_columns(["Audio", "audio", "text"], {}, "t").audio == "Audio"


def test_named_columns_win() -> None:
    columns = TableColumns(audio_column="파일", text_column="자막", speaker_column="화자")
    named = named_columns(columns, Source(group_column="방송", split_column="구분"))
    names = ["audio", "text", "파일", "자막", "화자", "방송", "구분"]
    assert find_columns(names, named, "t") == Columns("파일", "자막", "화자", "방송", "구분")


def test_a_missing_column_is_told_with_those_that_are_there() -> None:
    with pytest.raises(
        UserError, match=r"^--table t\.csv: there is no column '자막' \(--text-column\), only 파일, 내용$"
    ):
        find_columns(["파일", "내용"], {"text": "자막"}, "--table t.csv")
    with pytest.raises(UserError, match=r"which column is the audio\? Name it with --audio-column: 자료, 내용$"):
        find_columns(["자료", "내용"], {}, "--table t.csv")
    with pytest.raises(UserError, match="which column is the text"):
        find_columns(["audio", "내용"], {}, "--table t.csv")


def test_the_message_stays_one_short_line_whatever_the_columns_are_called() -> None:
    names = ["a\nb", "\ud800", "x" * 10_000, *(f"c{number}" for number in range(1000))]
    with pytest.raises(UserError) as raised:
        find_columns(names, {}, "t")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500
