"""A record of any table becomes a row: columns are found, paths land on this machine, and what is bad is refused."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.online.sources.row import Columns, PathMap, Row, as_text, find_columns, printable, row_from
from config import Source
from utils import UserError

COLUMNS = Columns("audio", "text", "speaker", "group", "split")
ROOT = Path("/tables")
modest = settings(deadline=None, max_examples=200, derandomize=True)


def row_of(record: dict[str, Any], rules: tuple[str, ...] = (), **others: str) -> Row:
    return row_from(record, COLUMNS, PathMap(rules, ROOT), "table", "table/calls.csv:2", **others)


# Columns


def test_usual_names_are_found_whatever_their_case() -> None:
    assert find_columns(["ID", "Path", "SENTENCE", "client_id"], Source(), "t") == Columns(
        "Path", "SENTENCE", "client_id"
    )
    assert find_columns([" audio ", "text"], Source(), "t") == Columns(" audio ", "text")
    assert find_columns(["raw_data", "label", "split"], Source(), "t") == Columns("raw_data", "label", split="split")


def test_the_likeliest_of_several_names_is_taken() -> None:
    names = ["path", "audio", "transcript", "text", "spk", "speaker"]
    assert find_columns(names, Source(), "t") == Columns("audio", "text", "speaker")


def test_of_names_that_differ_in_case_the_first_is_taken() -> None:
    assert find_columns(["Audio", "audio", "text"], Source(), "t").audio == "Audio"


def test_named_columns_win() -> None:
    wanted = Source(
        audio_column="파일", text_column="자막", speaker_column="화자", group_column="방송", split_column="구분"
    )
    names = ["audio", "text", "파일", "자막", "화자", "방송", "구분"]
    assert find_columns(names, wanted, "t") == Columns("파일", "자막", "화자", "방송", "구분")


def test_a_missing_column_is_told_with_those_that_are_there() -> None:
    with pytest.raises(
        UserError, match=r"^--table t\.csv: there is no column '자막' \(--text-column\), only 파일, 내용$"
    ):
        find_columns(["파일", "내용"], Source(text_column="자막"), "--table t.csv")
    with pytest.raises(UserError, match=r"which column is the audio\? Name it with --audio-column: 자료, 내용$"):
        find_columns(["자료", "내용"], Source(), "--table t.csv")
    with pytest.raises(UserError, match="which column is the text"):
        find_columns(["audio", "내용"], Source(), "--table t.csv")


def test_the_message_stays_one_short_line_whatever_the_columns_are_called() -> None:
    names = ["a\nb", "\ud800", "x" * 10_000, *(f"c{number}" for number in range(1000))]
    with pytest.raises(UserError) as raised:
        find_columns(names, Source(), "t")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


# Paths


@pytest.mark.parametrize(
    ("written", "expected"),
    {
        "/cul_m01/a/b.wav": "/mnt/cul/a/b.wav",
        "/cul_m01/b.wav": "/mnt/cul/b.wav",
        "//cul_m01/b.wav": "//cul_m01/b.wav",
        "/cul_m01//a/./b.wav": "/mnt/cul/a/b.wav",
        "/cul_m01/deep/b.wav": "/mnt/deep/b.wav",
        "/cul_m01/deeper/b.wav": "/mnt/cul/deeper/b.wav",
        "/cul_m012/b.wav": "/cul_m012/b.wav",
        "/CUL_M01/b.wav": "/CUL_M01/b.wav",
        "/else/cul_m01/b.wav": "/else/cul_m01/b.wav",
        "cul_m01/b.wav": "/tables/cul_m01/b.wav",
        "\\\\nas\\음성\\a\\b.wav": "/mnt/nas/a/b.wav",
        "\\\\NAS\\음성\\b.wav": "/mnt/nas/b.wav",
        "//nas/음성/b.wav": "/mnt/nas/b.wav",
        "D:\\녹음\\a\\b.wav": "/mnt/d/a/b.wav",
        "d:/녹음/b.wav": "/mnt/d/b.wav",
        "clips/b.wav": "/tables/clips/b.wav",
        "./clips/b.wav": "/tables/clips/b.wav",
        "clips\\b.wav": "/tables/clips/b.wav",
        "raw\\x\\b.wav": "/mnt/raw/x/b.wav",
        "/elsewhere\\b.wav": "/elsewhere/b.wav",
        "/elsewhere/b.wav": "/elsewhere/b.wav",
    }.items(),
)
def test_path_map(written: str, expected: str) -> None:
    """The longest rule wins, by whole components, with either slash; case matters but for Windows' paths."""
    rules = (
        "/cul_m01=/mnt/cul",
        "/cul_m01/deep/=/mnt/deep",
        "\\\\nas\\음성=/mnt/nas",
        "D:\\녹음\\=/mnt/d",
        "raw=/mnt/raw",
    )
    assert PathMap(rules, ROOT)(written) == Path(expected)


def test_the_root_can_be_mapped() -> None:
    assert PathMap(("/=/mnt/old",), ROOT)("/a/b.wav") == Path("/mnt/old/a/b.wav")
    assert PathMap(("/=/mnt/old",), ROOT)("a/b.wav") == Path("/tables/a/b.wav")


def test_a_file_with_a_backslash_in_its_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "a\\b.wav").touch()
    assert PathMap((), tmp_path)("a\\b.wav") == tmp_path / "a\\b.wav"


@modest
@given(st.text(min_size=1), st.lists(st.text(min_size=1).filter(lambda text: "=" not in text), max_size=3))
def test_no_path_makes_it_raise(written: str, froms: list[str]) -> None:
    paths = PathMap(tuple(f"{old}=/mnt" for old in froms), ROOT)
    for path in (written, f"a\\{written}", written * 3000, f"{'한' * 300}\\b.wav", "a\0\\b.wav"):
        assert isinstance(paths(path), Path)


@modest
@given(st.lists(st.sampled_from(["a", "b", "가", "c d", ".."]), min_size=1), st.integers(1, 4), st.sampled_from("/\\"))
def test_a_rule_replaces_what_it_names_and_nothing_else(parts: list[str], length: int, slash: str) -> None:
    mapped = PathMap(("/" + slash.join(parts[:length]) + "=/mnt/x",), ROOT)("/" + "/".join(parts))
    assert mapped == Path("/mnt/x", *parts[length:])


# Rows


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


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, ""), (float("nan"), ""), (float("inf"), "inf"), (True, "True"), ("2.0", "2.0"), (b"\xeb\xb7\x81", "뷁"),
        (17, "17"), (17.0, "17"), (1e20, "1" + "0" * 20), (1.5, "1.5"),
    ],
)  # fmt: skip
def test_as_text(cell: object, text: str) -> None:
    assert as_text(cell) == text


def test_printable() -> None:
    assert printable("가 나") == "가 나"
    assert printable("a\nb\0\ud800") == "a\\nb\\x00\\ud800"
    assert printable("가" * 50) == "가" * 40 + "…"
    assert printable("가" * 50, None) == "가" * 50


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
