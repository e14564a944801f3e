"""Storing: what is written opens with plain `datasets`, twice the same, and dropped.csv opens everywhere."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import DatasetDict, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.online import storing
from asr.online.parts import _schema
from asr.online.storing import DroppedTable, SplitWriter, write_dict

REPEATABLE = settings(derandomize=True, deadline=None, database=None)


def part(*texts: str) -> pa.Table:
    """Rows as a part holds them; the clip is the text itself."""
    empty: dict[str, Any] = dict.fromkeys(_schema().names, 0)
    empty |= {field.name: "" for field in _schema() if pa.types.is_string(field.type)}
    rows = [
        empty | {"text": text, "clip": text.encode(), "key": bytes(16), "name": f"clip{text}", "speaker": "kim",
                 "duration_s": 1.5, "source": "table", "source_id": f"a.tsv:{n}", "labels": [1, n]}
        for n, text in enumerate(texts)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=_schema())


def write(folder: Path, *parts: pa.Table, store: str = "audio") -> Path:
    writer = SplitWriter(folder, store)
    for one in parts:
        writer.write(one)
    writer.close()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    stored = load_from_disk(str(write(tmp_path / "train", part("가", "나"), part(), part("다"))))
    assert stored["text"][:] == ["가", "나", "다"]
    assert stored[1] == {
        "audio": {"bytes": "나".encode(), "path": "clip나.flac"},
        "text": "나",
        "speaker": "kim",
        "duration_s": 1.5,
        "source": "table",
        "source_id": "a.tsv:1",
        "labels": [1, 1],
    }


def test_features_take_the_place_of_audio(tmp_path: Path) -> None:
    stored = load_from_disk(str(write(tmp_path / "train", part("가"), store="features")))
    assert stored[0]["log_mel"] == "가".encode()
    assert "audio" not in stored.column_names


@pytest.mark.parametrize("store", ["audio", "features"])
def test_a_split_without_rows_opens(tmp_path: Path, store: str) -> None:
    full = load_from_disk(str(write(tmp_path / "full", part("가"), store=store)))
    stored = load_from_disk(str(write(tmp_path / "empty", store=store)))
    assert len(stored) == 0
    assert stored.features == full.features


def test_a_clip_without_a_file_has_a_name(tmp_path: Path) -> None:
    """Blobs of a database; a path that ends in .flac tells readers the format."""
    nameless = part("가").set_column(_schema().names.index("name"), "name", pa.array([""]))
    assert load_from_disk(str(write(tmp_path / "train", nameless)))[0]["audio"]["path"] == "clip.flac"


def test_many_bytes_are_spread_over_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "SHARD_BYTES", 3000)
    texts = [str(number) * 400 for number in range(10)]
    folder = write(tmp_path / "train", *(part(text) for text in texts))
    names = sorted(file.name for file in folder.glob("*.arrow"))
    assert len(names) > 2
    assert names == [f"data-{number:05d}.arrow" for number in range(len(names))]
    assert load_from_disk(str(folder))["text"][:] == texts
    assert sorted(file.name for file in folder.iterdir()) == [*names, "dataset_info.json", "state.json"]


def test_the_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, part("가", "나"), part("다"))
    assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.mark.parametrize("changed", ["text", "clip"])
def test_other_rows_have_another_fingerprint(tmp_path: Path, changed: str) -> None:
    """`datasets` keeps what it computed under the fingerprint: of other rows that would be wrong."""

    def fingerprint(name: str, rows: pa.Table) -> str:
        return json.loads((write(tmp_path / name, rows) / "state.json").read_text(encoding="utf-8"))["_fingerprint"]

    values = pa.array(["나"] if changed == "text" else [b"other"], _schema().field(changed).type)
    other = part("가").set_column(_schema().names.index(changed), _schema().field(changed), values)
    assert fingerprint("one", part("가")) != fingerprint("two", other)


def test_plain_datasets_open_all_splits(tmp_path: Path) -> None:
    """In a process without our code."""
    for name, rows in {"train": part("가", "나"), "validation": part("다"), "test": part()}.items():
        write(tmp_path / "data" / name, rows)
    write_dict(tmp_path / "data", ("train", "validation", "test"))
    assert isinstance(load_from_disk(str(tmp_path / "data")), DatasetDict)
    program = f"""
import sys
from datasets import load_from_disk
splits = load_from_disk({str(tmp_path / "data")!r})
assert not [name for name in sys.modules if name == "asr" or name.startswith("asr.")]
print({{name: len(rows) for name, rows in splits.items()}}, splits["train"][0]["text"])
"""
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", program], capture_output=True, encoding="utf-8", cwd=tmp_path, check=True
    )
    assert done.stdout.strip() == "{'train': 2, 'validation': 1, 'test': 0} 가"


# dropped.csv


def written(file: Path, *rows: tuple[str, ...]) -> list[dict[str, str]]:
    table = DroppedTable(file)
    for row in rows:
        table.add(*row)
    table.close()
    with open(file, encoding="utf-8-sig", newline="") as opened:
        return list(csv.DictReader(opened))


def test_dropped_rows_are_listed_for_excel_too(tmp_path: Path) -> None:
    row = ("table", "a.tsv:7", "train", "too short", "0.20 s", '그는 "네", 했다\n그리고')
    (found,) = written(tmp_path / "dropped.csv", row)
    assert tuple(found.values()) == row
    assert list(found) == ["source", "source_id", "split", "reason", "detail", "text"]
    assert (tmp_path / "dropped.csv").read_bytes().startswith(b"\xef\xbb\xbfsource,")


@pytest.mark.parametrize("text", ['=HYPERLINK("http://x")', "+1+1", "@SUM(A1)"])
def test_a_text_is_never_a_formula(tmp_path: Path, text: str) -> None:
    (found,) = written(tmp_path / "dropped.csv", ("", "", "", "", "", text))
    assert found["text"] == f"'{text}"


@given(st.lists(st.tuples(*[st.text(max_size=12)] * 6), max_size=4))
@settings(REPEATABLE, max_examples=60)
def test_no_text_breaks_the_table(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]) -> None:
    """Line ends of every kind, quotes, commas and NUL: as many rows come out as went in, with their texts."""
    found = written(tmp_path_factory.mktemp("csv") / "dropped.csv", *rows)
    assert [[letters(cell) for cell in line.values()] for line in found] == [
        [letters(cell) for cell in row] for row in rows
    ]


def letters(text: str) -> list[str]:
    """What of a text has to be readable in the table."""
    return [char for char in text if char not in "\0\\0'\r\n"]


def test_a_text_that_no_cell_holds_is_cut(tmp_path: Path) -> None:
    (found,) = written(tmp_path / "dropped.csv", ("", "", "", "", "", "가" * 200_000))
    assert found["text"] == "가" * 32_000
