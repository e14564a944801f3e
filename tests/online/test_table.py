"""Tables and folders of own recordings: every format and encoding is read right, and a bad row costs only itself."""

from __future__ import annotations

import csv
import datetime
import io
import json
import logging
import os
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asr.online.sources import table
from asr.online.sources.row import Row
from asr.shared.tables.formats import READERS
from asr.shared.tables.paths import PathMap
from config import Data, Files, Source, TableColumns
from utils import UserError

# Syllables that only the whole of CP949 has, and text that needs quoting.
SENTENCES = ["뷁 같은 소리", "똠얌꿍을 먹었다", "햏햏, 쀍!", '그는 "안녕"이라고 했다', "네", "12시 반; 그리고 끝"]
modest = settings(deadline=None, max_examples=100, derandomize=True)


def of(*paths: Path, group_column: str | None = None, **columns: Any) -> Data:
    source = Source(group_column=group_column)
    return Data(source=source, columns=TableColumns(**columns), files=Files(table=paths))


def rows_of(*paths: Path, **flags: Any) -> list[Row]:
    """Read tables as preparation would; what is announced is what comes."""
    table.check(of(*paths, **flags))
    announced: list[int] = []
    rows = list(table.read(of(*paths, **flags), announced.append))
    assert sum(announced) == len(rows)
    return rows


def texts_of(*paths: Path) -> list[str]:
    return [row.text for row in rows_of(*paths)]


def refusals_of(path: Path) -> dict[int, str]:
    """Return row number to detail of what is refused as malformed."""
    return {number_of(row): row.detail for row in rows_of(path) if row.refused == "malformed row"}


def number_of(row: Row) -> int:
    return int(row.source_id.rpartition(":")[2])


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def delimited(records: list[list[str]], **dialect: Any) -> str:
    file = io.StringIO()
    csv.writer(file, **dialect).writerows([["audio", "text", "speaker"], *records])
    return file.getvalue()


def write_xlsx(path: Path, rows: list[list[Any]]) -> Path:
    import openpyxl

    book = openpyxl.Workbook()
    for row in rows:
        book.worksheets[0].append(row)
    book.save(path)
    return path


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


# Encodings

TEXT_FORMATS = {
    "csv": lambda records: delimited(records),
    "tsv": lambda records: delimited(records, dialect="excel-tab"),
    "jsonl": lambda records: "".join(
        json.dumps(dict(zip(("audio", "text", "speaker"), record, strict=True)), ensure_ascii=False) + "\r\n"
        for record in records
    ),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp949"])
@pytest.mark.parametrize("ending", TEXT_FORMATS)
def test_encodings(tmp_path: Path, ending: str, encoding: str) -> None:
    records = [[f"소리/{number}.wav", text, "김"] for number, text in enumerate(SENTENCES)]
    path = write(tmp_path / f"표.{ending}", TEXT_FORMATS[ending](records), encoding)
    assert [[str(row.audio), row.text, row.speaker] for row in rows_of(path)] == [
        [str(tmp_path / audio), text, speaker] for audio, text, speaker in records
    ]


def test_utf_16_with_the_other_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "\ufeff" + delimited([["a.wav", "뷁", ""]]), "utf-16-be")
    assert texts_of(path) == ["뷁"]


def test_a_file_in_no_encoding_is_refused_with_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"audio,text\na.wav,\xb3\xd7\nb.wav,\xff\xff\n")
    message = refused(lambda: table.check(of(path)))
    assert message.startswith(f"--table {path}: the text is not UTF-8 (byte 17 does not fit), nor CP949 (byte 26")
    path.write_bytes(b"\xef\xbb\xbfaudio,text\na.wav,\xb3\xd7\n")
    assert "not UTF-8 (byte 20 does not fit): save" in refused(lambda: table.check(of(path)))
    path.write_bytes("audio,text\na.wav,네\n".encode("utf-16") + b"\x00")
    assert "not UTF-16 (byte 40 does not fit): save" in refused(lambda: table.check(of(path)))


def test_a_table_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "audio,text\n" + "".join(f"{n}.wav,{'가' * 500}\n" for n in range(6000)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in table.read(of(path), lambda count: None)) == 6000
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 2
    finally:
        tracemalloc.stop()


# CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_header_tells_the_delimiter(tmp_path: Path, delimiter: str) -> None:
    path = write(tmp_path / "t.csv", delimited([["a.wav", "네, 그래; 응\t끝", "김"]], delimiter=delimiter))
    assert texts_of(path) == ["네, 그래; 응\t끝"]


def test_a_delimiter_within_a_quoted_name_does_not_count(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", '"note; a; b; c",audio,text\nx,a.wav,네\n')
    assert texts_of(path) == ["네"]


def test_numbers_are_those_of_lines_whatever_ends_them(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", 'audio,text\r\n\r\na.wav,하나\nb.wav,"둘\r\n셋"\r\n \t\n,\nc.wav,넷\rd.wav,다섯')
    assert [(number_of(row), row.text) for row in rows_of(path)] == [
        (3, "하나"), (4, "둘\r\n셋"), (8, "넷"), (9, "다섯"),
    ]  # fmt: skip


def test_bad_rows_cost_only_themselves(tmp_path: Path) -> None:
    lines = [
        "audio,text,speaker",
        "a.wav,하나,김",
        "b.wav,둘,셋,넷",
        "c.wav",
        "d.wav,넷",
        'e.wav,"다섯"여섯,김',
        f"f.wav,{'가' * 140_000},김",
        "g.wav,일\0곱,김",
        f"h.wav,{'가,' * 600_000},김",
        ",여덟,김",
        'i.wav,"아홉,김',
        "j.wav,열,김",
    ]
    path = write(tmp_path / "t.csv", "\n".join(lines) + "\n")
    rows = rows_of(path)
    assert [number_of(row) for row in rows] == list(range(2, 13))
    assert {number_of(row): row.text for row in rows if not row.refused} == {2: "하나", 5: "넷", 12: "열"}
    assert {number_of(row): row.detail for row in rows if row.refused == "malformed row"} == {
        3: "number of cells: 4, in the header: 3",
        4: "number of cells: 1, in the header: 3",
        6: "',' expected after '\"'",
        7: "field larger than field limit (131072)",
        8: "a cell holds a NUL character",
        9: "the line is longer than 1048576 characters",
        11: "unexpected end of data",
    }
    assert {number_of(row): row.detail for row in rows if row.refused == "no audio named"} == {
        10: "column audio holds nothing"
    }


def test_a_quotation_mark_that_is_never_closed_costs_one_line(tmp_path: Path) -> None:
    """Neither the rows up to the end nor those up to the longest field are swallowed."""
    good = [f"{number}.wav,문장 {number}" for number in range(10_000)]
    path = write(tmp_path / "t.csv", "\n".join(["audio,text", 'x.wav,"그는', *good, 'y.wav,"끝']))
    assert list(refusals_of(path)) == [2, 10_003]
    assert texts_of(path)[1:-1] == [f"문장 {number}" for number in range(10_000)]


def test_a_line_that_is_too_long_within_a_bad_record_is_seen_again(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", f'audio,text\na.wav,"하나\n{"x" * (1 << 20)}yz\nb.wav,둘\n')
    assert list(refusals_of(path)) == [2, 3]
    assert texts_of(path)[2:] == ["둘"]


# TSV


def test_a_tsv_as_excel_writes_it(tmp_path: Path) -> None:
    records = [["a.wav", '그는 "안녕"이라고\n말했다', "김"], ["b.wav", '"네"', "이"], ["c.wav", "a\tb", ""]]
    path = write(tmp_path / "t.tsv", delimited(records, dialect="excel-tab"))
    assert [(number_of(row), row.text) for row in rows_of(path)] == [(2, records[0][1]), (4, '"네"'), (5, "a\tb")]


@pytest.mark.parametrize(
    "bare",
    [
        ['"안녕" 그가 말했다', '"네"', 'ㅋ"ㅋ'],
        ["하나", '"둘', "셋"],
        ['"하나', "둘", '셋"', "넷"],
        ['그는 "안녕', "둘", '"'],
    ],
)
def test_a_tsv_as_common_voice_writes_it(tmp_path: Path, bare: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """A quotation mark before one sentence and one behind another must not swallow what is between."""
    lines = [f"{number}.wav\t{text}\t김" for number, text in enumerate(bare)]
    path = write(tmp_path / "t.tsv", "\n".join(["path\tsentence\tclient_id", *lines]))
    with caplog.at_level(logging.INFO, "whisper"):
        assert texts_of(path) == bare
    assert caplog.messages[-1].startswith(f"{path}: quotation marks are read as part of the text, because of line ")


def test_a_tsv_with_bad_rows_and_without_quotation_marks_is_as_excel_writes_it(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", f'audio\ttext\na.wav\t{"가" * 140_000}\nb.wav\t"둘 ""셋"""\n')
    assert texts_of(path) == ["", '둘 "셋"']


# JSON Lines


def test_bad_lines_of_json_cost_only_themselves(tmp_path: Path) -> None:
    lines = [
        '{"audio": "a.wav", "text": "하나"}',
        '["audio"]',
        "",
        '{"audio": "b.wav", "text": ',
        "[" * 100_000,
        '{"audio": "c.wav", "text": "\\ud800"}',
        '{"audio": "c.wav", "text": "\\u0000"}',
        '{"audio": "c.wav", "text": ["둘"]}',
        '{"text": "둘"}',
        f'{{"audio": "d.wav", "text": {"9" * 5000}}}',
        "\0",
        f'{{"audio": "d.wav", "text": "{"x" * (1 << 20)}"}}',
        '{"audio": {"path": "e.wav"}, "text": 17.0, "speaker": 3, "note": {}}',
    ]
    path = write(tmp_path / "t.ndjson", "\n".join(lines))
    rows = rows_of(path)
    assert [number_of(row) for row in rows] == [1, 2, *range(4, 14)]
    assert [(row.audio, row.text, row.speaker) for row in rows if not row.refused] == [
        (tmp_path / "a.wav", "하나", ""), (tmp_path / "e.wav", "17", "3"),
    ]  # fmt: skip
    assert [number_of(row) for row in rows if row.refused == "no audio named"] == [9]
    details = refusals_of(path)
    assert details[2] == "no JSON object"
    assert details[4] == "no JSON: Expecting value at character 29"
    assert details[6] == "column text holds half a surrogate pair"
    assert details[12] == "the line is longer than 1048576 characters"


def test_a_column_may_come_late(tmp_path: Path) -> None:
    lines = ["{}", "oh", '{"audio": "a.wav"}', '{"audio": "b.wav", "text": "네"}']
    assert texts_of(write(tmp_path / "t.jsonl", "\n".join(lines))) == ["", "", "", "네"]


@pytest.mark.parametrize("text", ["", "\n\n", '[{"audio": "a.wav", "text": "네"}]', '{\n"audio": "a.wav"\n}', "{}"])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "t.jsonl", text)
    assert "it must be one object a line" in refused(lambda: table.check(of(path)))


# XLSX


def test_a_workbook(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 5, 1)
    rows: list[list[Any]] = [
        ["파일", "글", "화자", None, "audio", "text"],
        ["x", "y", 1, "z", "a.wav", "뷁 똠"],
        [None] * 6,
    ]
    rows += [["", "", 2.0, 1, "b.wav", 17], [" "], [None, None, 3, None, "c.wav", 17.0, "beyond the header"]]
    rows += [[None, None, None, None, "d.wav", day], ["only", "a", "note"]]
    path = write_xlsx(tmp_path / "t.XLSX", rows)
    read = rows_of(path, speaker_column="화자")
    assert [(number_of(row), row.text, row.speaker) for row in read] == [
        (2, "뷁 똠", "1"), (4, "17", "2"), (6, "17", "3"), (7, "2024-05-01 00:00:00", ""), (8, "", "note"),
    ]  # fmt: skip
    assert [row.refused for row in read] == ["", "", "", "", "no audio named"]


def test_a_header_below_empty_rows(tmp_path: Path) -> None:
    path = write_xlsx(tmp_path / "t.xlsx", [[], [None, " "], ["audio", "text"], ["a.wav", "네"]])
    assert [number_of(row) for row in rows_of(path)] == [4]


def test_only_the_first_sheet_is_read(tmp_path: Path) -> None:
    import openpyxl

    book = openpyxl.load_workbook(write_xlsx(tmp_path / "t.xlsx", [["audio", "text"], ["a.wav", "네"]]))
    book.create_sheet("other").append(["b.wav", "아니요"])
    book.save(tmp_path / "t.xlsx")
    assert texts_of(tmp_path / "t.xlsx") == ["네"]


def test_a_wrong_size_written_in_a_workbook_cuts_nothing(tmp_path: Path) -> None:
    """Some programs write A1 as the size of every sheet."""
    whole = write_xlsx(tmp_path / "whole.xlsx", [["audio", "text"], ["a.wav", "네"], ["b.wav", "응"]])
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "t.xlsx", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'ref="A1:B3"', b'ref="A1"'))
    assert texts_of(tmp_path / "t.xlsx") == ["네", "응"]


def test_a_formula_gives_what_it_came_to(tmp_path: Path) -> None:
    """Its result, which Excel stores; openpyxl stores none, so there is no text rather than "=A1"."""
    path = write_xlsx(tmp_path / "t.xlsx", [["audio", "text"], ["a.wav", "=A1"]])
    assert texts_of(path) == [""]


def test_a_workbook_with_a_password_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.xlsx"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1000))
    assert "has a password or is an old .xls" in refused(lambda: table.check(of(path)))


def test_a_row_number_beyond_excel_is_refused(tmp_path: Path) -> None:
    """openpyxl would yield every row before it."""
    whole = write_xlsx(tmp_path / "whole.xlsx", [["audio", "text"], ["a.wav", "네"]])
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "t.xlsx", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'<row r="2"', b'<row r="2000000000"'))
    assert "more than 1048576 rows" in refused(lambda: list(table.read(of(tmp_path / "t.xlsx"), print)))


# Parquet


def test_parquet_with_paths(tmp_path: Path) -> None:
    columns = {
        "id": [1, 2, 3],
        "text": [*SENTENCES[:2], None],
        "path": ["a.wav", None, "b.wav"],
        "speaker_id": [7, 8, 9],
    }
    rows = rows_of(write_parquet(tmp_path / "t.parquet", columns))
    assert [(number_of(row), row.text, row.speaker) for row in rows] == [
        (1, SENTENCES[0], "7"), (2, SENTENCES[1], "8"), (3, "", "9"),
    ]  # fmt: skip
    assert [row.refused for row in rows] == ["", "no audio named", ""]
    assert rows[2].audio == tmp_path / "b.wav"


def test_parquet_with_audio_in_it(tmp_path: Path) -> None:
    structs = [
        {"bytes": b"RIFF1", "path": "a.wav"},
        {"bytes": None, "path": "b.wav"},
        {"bytes": b"", "path": None},
        None,
    ]
    for name, audio in (("s.parquet", structs), ("b.parquet", [b"RIFF1", b"RIFF2", b"", None])):
        rows = rows_of(write_parquet(tmp_path / name, {"audio": audio, "text": list("가나다라")}))
        assert rows[0].audio == b"RIFF1"
        assert rows[1].audio == (tmp_path / "b.wav" if name == "s.parquet" else b"RIFF2")
        assert [row.refused for row in rows] == ["", "", "no audio named", "no audio named"]


def test_parquet_of_many_batches_and_row_groups(tmp_path: Path) -> None:
    import pyarrow

    paths = pyarrow.array([f"{number}.wav" for number in range(1000)]).dictionary_encode()
    texts = pyarrow.array([f"문장 {number}" for number in range(1000)], pyarrow.large_string())
    path = write_parquet(tmp_path / "t.parquet", {"audio": paths, "text": texts}, row_group_size=300)
    rows = rows_of(path)
    assert [number_of(row) for row in rows] == list(range(1, 1001))
    assert [row.text for row in rows] == [f"문장 {number}" for number in range(1000)]


def test_a_bad_cell_of_parquet_costs_one_row(tmp_path: Path) -> None:
    import pyarrow

    texts = [b"\xff" if number == 70 else "네".encode() for number in range(130)]
    damaged = pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())
    path = write_parquet(tmp_path / "t.parquet", {"audio": [f"{n}.wav" for n in range(130)], "text": damaged})
    rows = rows_of(path)
    assert [number_of(row) for row in rows] == list(range(1, 131))
    assert [(number_of(row), row.refused) for row in rows if row.refused] == [(71, "malformed row")]
    assert "0xff" in rows[70].detail
    assert {row.text for row in rows} == {"네", ""}


@pytest.mark.parametrize("audio", [[1.5], [[0.1, 0.2]], [{"array": [0.1], "sampling_rate": 16000}]])
def test_parquet_with_samples_is_refused(tmp_path: Path, audio: list[Any]) -> None:
    path = write_parquet(tmp_path / "t.parquet", {"audio": audio, "text": ["네"]})
    assert "but paths or bytes are needed" in refused(lambda: table.check(of(path)))


# Any table


@pytest.mark.parametrize(
    ("name", "content", "words"),
    {
        "empty": ("t.csv", b"", "is empty: its first row must name the columns"),
        "blank": ("t.csv", b"\n\r\n  \n", "is empty"),
        "only a mark": ("t.tsv", b"\xef\xbb\xbf", "is empty"),
        "twice": ("t.csv", b"audio,text, text \na,b,c\n", "two columns are called 'text': rename one"),
        "unquoted header": ("t.csv", b'audio,"te"xt\na,b\n', "the header cannot be read: ',' expected"),
        "no audio": (
            "t.csv",
            b"name,text\na,b\n",
            "which column is the audio? Name it with --audio-column: name, text",
        ),
        "no text": ("t.jsonl", b'{"audio": 1}', "which column is the text?"),
        "no workbook": ("t.xlsx", b"audio,text\n", "is damaged or no .xlsx: File is not a zip file"),
        "no parquet": ("t.parquet", b"audio,text\n", "is damaged or no .parquet: "),
        "empty workbook": ("t.xlsx", b"", "is damaged or no .xlsx"),
        "empty parquet": ("t.parquet", b"", "is damaged or no .parquet"),
        "another ending": ("t.xls", b"", "must end in .csv .tsv .jsonl .ndjson .parquet .xlsx"),
        "no ending": ("t", b"", "must end in .csv"),
    }.values(),
)
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for call in (lambda: table.check(of(path)), lambda: list(table.read(of(path), print))):
        message = refused(call)
        assert message.startswith(f"--table {path}")
        assert words in message


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert (
        refused(lambda: table.check(of(tmp_path / "t.csv"))) == f"--table {tmp_path / 't.csv'}: there is no such file"
    )
    assert "there is no such file" in refused(lambda: table.check(of(Path("x" * 5000 + ".csv"))))
    assert "there is no such file" in refused(lambda: table.check(of(Path("a\0.csv"))))
    assert f"give --folder {tmp_path}" in refused(lambda: table.check(of(tmp_path)))
    good = write(tmp_path / "t.csv", "audio,text\n")
    nowhere = tmp_path / "nowhere"
    assert (
        refused(lambda: table.check(of(good, audio_root=nowhere))) == f"--audio-root {nowhere}: there is no such folder"
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "audio,text\n")
    path.chmod(0)
    assert "cannot be read: Permission denied" in refused(lambda: table.check(of(path)))


def test_a_table_without_rows_is_read(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "t.csv", "audio,text,,\n")) == []
    assert rows_of(write_xlsx(tmp_path / "t.xlsx", [["audio", "text"]])) == []


def test_where_relative_paths_start(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "audio,text\nclips/a.wav,네\n/old/b.wav,네\nD:\\c.wav,네\n")
    root = tmp_path / "clips"
    root.mkdir()
    assert [row.audio for row in rows_of(path)][:2] == [tmp_path / "clips" / "a.wav", Path("/old/b.wav")]
    mapped = rows_of(path, audio_root=root, path_map=("/old=/new", "d:=/mnt/d"))
    assert [row.audio for row in mapped] == [root / "clips" / "a.wav", Path("/new/b.wav"), Path("/mnt/d/c.wav")]


def test_several_tables_are_read_in_order_each_once(tmp_path: Path) -> None:
    for folder, text in (("a", "하나"), ("b", "둘")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "calls.csv", f"audio,text\nx.wav,{text}\n")
    other = write(tmp_path / "other.jsonl", '{"audio": "y.wav", "text": "셋"}')
    first, second = tmp_path / "b" / "calls.csv", tmp_path / "a" / "calls.csv"
    rows = rows_of(first, second, other, tmp_path / "a" / ".." / "b" / "calls.csv")
    assert [(row.source, row.source_id, row.text) for row in rows] == [
        ("table", "table/b/calls.csv:2", "둘"), ("table", "table/a/calls.csv:2", "하나"),
        ("table", f"table/{tmp_path.name}/other.jsonl:1", "셋"),
    ]  # fmt: skip
    assert rows_of(first)[0].source_id == "table/calls.csv:2"


def test_speakers_groups_and_splits_come_along(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "audio,text,speaker,방송,split\na.wav,네,김,뉴스,dev\nb.wav,네,이,,x\n")
    first, second = rows_of(path, group_column="방송")
    assert (first.speaker, first.group, first.split) == ("김", "뉴스", "validation")
    assert second.refused == "unknown split"


# Whatever is in the file

cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
cells |= st.text('가뷁a ,;"\n\r', max_size=8)
names = cells.map(str.strip).filter(bool)
records = st.lists(st.tuples(names, cells, cells.map(str.strip)), max_size=8)


def assert_same(path: Path, expected: list[tuple[str, str, str]]) -> None:
    rows = rows_of(path)
    assert [(row.audio, row.text, row.speaker, row.refused) for row in rows] == [
        (PathMap((), path.parent)(audio), text, speaker, "") for audio, text, speaker in expected
    ]


@modest
@given(records, st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), st.sampled_from(",;\t"), st.booleans())
def test_what_the_csv_module_writes_comes_back(
    records: list[tuple[str, str, str]], encoding: str, delimiter: str, quoted: bool
) -> None:
    quoting = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    with tempfile.TemporaryDirectory() as folder:
        text = delimited([list(record) for record in records], delimiter=delimiter, quoting=quoting)
        assert_same(write(Path(folder) / "t.csv", text, encoding), records)


@modest
@given(records)
def test_what_the_csv_module_writes_as_tsv_comes_back(records: list[tuple[str, str, str]]) -> None:
    # Line breaks and tabs together in a cell are taken for joined rows.
    plain = [
        (audio, " ".join(text.split("\t")), speaker) for audio, text, speaker in records if "\t" not in audio + speaker
    ]
    with tempfile.TemporaryDirectory() as folder:
        assert_same(write(Path(folder) / "t.tsv", delimited([list(r) for r in plain], dialect="excel-tab")), plain)


@modest
@given(records.filter(bool), st.booleans())
def test_what_the_json_module_writes_comes_back(records: list[tuple[str, str, str]], ascii_only: bool) -> None:
    objects = [dict(zip(("audio", "text", "speaker"), record, strict=True)) for record in records]
    text = "".join(json.dumps(value, ensure_ascii=ascii_only) + "\n" for value in objects)
    with tempfile.TemporaryDirectory() as folder:
        assert_same(write(Path(folder) / "t.jsonl", text), records)


@modest
@given(records)
def test_what_pyarrow_writes_comes_back(records: list[tuple[str, str, str]]) -> None:
    import pyarrow

    columns = list(zip(*records, strict=True)) or [(), (), ()]
    arrays = [pyarrow.array(column, pyarrow.string()) for column in columns]
    with tempfile.TemporaryDirectory() as folder:
        path = write_parquet(Path(folder) / "t.parquet", dict(zip(("audio", "text", "speaker"), arrays, strict=True)))
        assert_same(path, records)


@settings(modest, max_examples=25)
@given(st.lists(st.tuples(names, cells, cells), max_size=8))
def test_what_openpyxl_writes_comes_back(records: list[tuple[str, str, str]]) -> None:
    # XML has no control characters, makes one line break of all, and a spreadsheet computes what begins with "=".
    def plain(cell: str) -> str:
        return "".join(char for char in cell if char.isprintable() or char == "\n").lstrip("=").strip()

    expected = [(plain(audio) or "a.wav", plain(text), plain(speaker)) for audio, text, speaker in records]
    with tempfile.TemporaryDirectory() as folder:
        path = write_xlsx(Path(folder) / "t.xlsx", [["audio", "text", "speaker"], *map(list, expected)])
        assert_same(path, expected)


def assert_rows_or_user_error(path: Path) -> list[Row]:
    """Nothing else may come of a file, and no line may be told twice."""
    announced: list[int] = []
    message, rows = "", []
    try:
        table.check(of(path))
        rows = list(table.read(of(path), announced.append))
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert message or announced == [len(rows)]
    numbers = [number_of(row) for row in rows]
    assert numbers == sorted(set(numbers))
    return rows


@modest
@given(st.binary(max_size=200), st.sampled_from(sorted(READERS)), st.booleans())
@example(b"\xff\xfe", ".csv", False)
@example(b"\xfe\xff\0", ".jsonl", False)
@example(b"PK\x05\x06" + bytes(18), ".xlsx", False)
@example(b"PAR1\0\0\0\0PAR1", ".parquet", False)
def test_arbitrary_bytes_end_in_rows_or_one_line(data: bytes, ending: str, with_header: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t{ending}"
        path.write_bytes((b"audio\ttext\n" if ending == ".tsv" else b"audio,text\n") * with_header + data)
        assert_rows_or_user_error(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    write_xlsx(folder / "t.xlsx", [["audio", "text"], *([f"{n}.wav", text] for n, text in enumerate(SENTENCES))])
    write_parquet(folder / "t.parquet", {"audio": [f"{n}.wav" for n in range(len(SENTENCES))], "text": SENTENCES})
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@modest
@given(data=st.data(), ending=st.sampled_from([".xlsx", ".parquet"]))
def test_a_damaged_file_ends_in_rows_or_one_line(whole: dict[str, bytes], data: st.DataObject, ending: str) -> None:
    start = data.draw(st.integers(0, len(whole[ending]) - 1))
    put = data.draw(st.binary(max_size=8))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t{ending}"
        path.write_bytes(whole[ending][:start] + put + whole[ending][start + data.draw(st.integers(0, 20)) :])
        assert_rows_or_user_error(path)


@modest
@given(st.text('a가,;\t"\n\r\0 {}[]:', max_size=60) | st.text(max_size=60), st.sampled_from(["csv", "tsv", "jsonl"]))
@example('"\n"\n"', "csv")
@example('a\t"b\nc\td"\n', "tsv")
def test_arbitrary_rows_are_all_counted(text: str, ending: str) -> None:
    header = {"csv": "audio,text,x\n", "tsv": "audio\ttext\tx\n", "jsonl": '{"audio": "", "text": ""}\n'}[ending]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t.{ending}"
        path.write_bytes((header + text).encode("utf-8", "replace"))
        assert_rows_or_user_error(path)


@modest
@given(st.text('a가,\t"\0 ;', max_size=20), st.sampled_from(["csv", "tsv"]))
def test_no_bad_row_takes_good_ones_with_it(bad: str, ending: str) -> None:
    between = "," if ending == "csv" else "\t"
    good = [f"{number}.wav{between}문장 {number}{between}김" for number in range(5)]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / f"t.{ending}", "\n".join([f"audio{between}text{between}speaker", bad, *good]))
        rows = assert_rows_or_user_error(path)
    assert [(number_of(row), row.text) for row in rows][-5:] == [(3 + n, f"문장 {n}") for n in range(5)]


# Folders


def folder_rows(*folders: Path) -> list[Row]:
    data = Data(files=Files(folder=folders))
    table.check_folders(data)
    announced: list[int] = []
    rows = list(table.read_folders(data, announced.append))
    assert sum(announced) == len(rows)
    return rows


def fill(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def test_a_folder_in_any_depth(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "b.wav": b"x",
        "b.txt": "둘\n",
        "a.FLAC": b"x",
        "a.TXT": "하나",
        "가/나/c.v1.m4a": b"x",
        "가/나/c.v1.txt": "셋",
    }
    folder = fill(tmp_path / "녹음", {**files, "readme.md": "x", "meta.json": "{}"})
    assert folder_rows(folder) == [
        Row("folder", "folder/녹음/a.FLAC", folder / "a.FLAC", "하나"),
        Row("folder", "folder/녹음/b.wav", folder / "b.wav", "둘\n"),
        Row("folder", "folder/녹음/가/나/c.v1.m4a", folder / "가" / "나" / "c.v1.m4a", "셋"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp949"])
def test_encodings_of_text_files(tmp_path: Path, encoding: str) -> None:
    fill(tmp_path, {"a.wav": b"x", "a.txt": "뷁, 그는 말했다.\r\n".encode(encoding)})
    assert folder_rows(tmp_path)[0].text == "뷁, 그는 말했다.\r\n"


def test_what_lacks_its_other_half_is_refused(tmp_path: Path) -> None:
    fill(
        tmp_path / "f", {"a.wav": b"x", "b.txt": "둘", "sub/a.txt": "셋", "c.wav": b"x", "c.txt": "넷", "c.TXT": "다섯"}
    )
    rows = folder_rows(tmp_path / "f")
    assert {row.source_id: row.refused for row in rows} == {
        "folder/f/a.wav": "no text file beside it",
        "folder/f/b.txt": "no audio file beside it",
        "folder/f/c.wav": "",
        "folder/f/c.txt": "no audio file beside it",
        "folder/f/sub/a.txt": "no audio file beside it",
    }
    assert [row.text for row in rows if not row.refused] == ["다섯"]


def test_two_recordings_of_one_text_are_both_rows(tmp_path: Path) -> None:
    fill(tmp_path, {"a.wav": b"x", "a.mp3": b"x", "a.txt": "하나"})
    assert [(row.audio, row.text) for row in folder_rows(tmp_path)] == [
        (tmp_path / "a.mp3", "하나"), (tmp_path / "a.wav", "하나"),
    ]  # fmt: skip


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {"a.wav": b"x", "a.txt": "네", "._a.wav": b"x", "._a.txt": b"\0", ".git/b.wav": b"x", "__MACOSX/._c.txt": "x"},
    )
    assert len(folder_rows(tmp_path)) == 1


def test_a_name_taken_apart_by_macos_finds_its_other_half(tmp_path: Path) -> None:
    import unicodedata

    fill(tmp_path, {unicodedata.normalize("NFD", "안녕.wav"): b"x", "안녕.txt": "안녕"})
    assert [row.text for row in folder_rows(tmp_path)] == ["안녕"]


@pytest.mark.skipif(os.name != "posix", reason="names are not bytes there")
def test_a_name_in_cp949_can_be_told(tmp_path: Path) -> None:
    """An archive from a Korean Windows unpacks to such names; reports are UTF-8."""
    name = os.fsdecode("안녕".encode("cp949"))
    fill(tmp_path / "f", {f"{name}.wav": b"x", f"{name}.txt": "안녕"})
    (row,) = folder_rows(tmp_path / "f")
    assert row.source_id.encode().startswith(b"folder/f/\\udcbe")
    assert isinstance(row.audio, Path)
    assert row.audio.read_bytes() == b"x"


def test_a_text_file_that_cannot_be_read_costs_one_row(tmp_path: Path) -> None:
    texts: dict[str, bytes | str] = {"a.txt": b"\xff\xff", "b.txt": "네", "c.txt": bytes(3), "d.txt": "가" * 400_000}
    fill(tmp_path, {**{name.replace("txt", "wav"): b"x" for name in [*texts, "e.txt"]}, **texts})
    (tmp_path / "e.txt").symlink_to(tmp_path / "nowhere")
    rows = folder_rows(tmp_path)
    assert [row.refused for row in rows] == ["unreadable text file", "", *["unreadable text file"] * 3]
    assert [row.detail for row in rows if row.refused] == [
        "the text is not UTF-8 (byte 0 does not fit), nor CP949 (byte 0 does not fit): save it as UTF-8",
        "a NUL character",
        "1200000 bytes are no text of one clip",
        "No such file or directory",
    ]


def test_links_are_followed_once(tmp_path: Path) -> None:
    real = fill(tmp_path / "real", {"a.wav": b"x", "a.txt": "네"})
    (tmp_path / "f").mkdir()
    for name in ("one", "two"):
        (tmp_path / "f" / name).symlink_to(real)
    (real / "back").symlink_to(tmp_path / "f")
    assert [row.source_id for row in folder_rows(tmp_path / "f")] == ["folder/f/one/a.wav"]


def test_folders_without_audio_are_refused(tmp_path: Path) -> None:
    def check(folder: Path) -> str:
        return refused(lambda: table.check_folders(Data(files=Files(folder=(folder,)))))

    fill(tmp_path / "f", {"a.txt": "네", "._a.wav": b"x"})
    assert check(tmp_path / "f").startswith(f"--folder {tmp_path / 'f'}: no audio file is in it (.wav ")
    assert check(tmp_path / "none") == f"--folder {tmp_path / 'none'}: there is no such folder"
    assert "there is no such folder" in check(tmp_path / "f" / "a.txt")


def test_several_folders_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for parent in "ab":
        fill(tmp_path / parent / "clips", {"x.wav": b"x", "x.txt": parent})
    rows = folder_rows(tmp_path / "a" / "clips", tmp_path / "b" / "clips")
    assert [(row.source_id, row.text) for row in rows] == [
        ("folder/a/clips/x.wav", "a"), ("folder/b/clips/x.wav", "b"),
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path / "a" / "clips")
    assert [row.source_id for row in folder_rows(Path())] == ["folder/clips/x.wav"]
