"""A table of any format is opened by its name, and what is wrong with it is told by the flag that named it."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr.shared.tables.columns import Columns
from asr.shared.tables.formats import open_table
from utils import UserError

# What goes wrong when a table is opened, and what only when its rows are read.
OPENING = {
    "none.csv": (None, ": there is no such file"),
    "other.xls": (b"", ": the name of a table must end in .csv .tsv .jsonl .ndjson .parquet .xlsx"),
    "code.csv": (b"\xff\xff\n", ": the text is not UTF-8 (byte 0 does not fit), nor CP949 (byte 0 does not fit)"),
    "header.csv": (b'audio,"te"xt\n', ": the header cannot be read: "),
    "empty.tsv": (b"", " is empty: its first row must name the columns"),
    "twice.csv": (b"audio,text,text\n", ": two columns are called 'text': rename one"),
    "list.jsonl": (b"[]\n", ": no line is a JSON object; it must be one object a line"),
    "password.xlsx": (b"\xd0\xcf\x11\xe0", " has a password or is an old .xls: save it as .xlsx without one"),
    "book.xlsx": (b"audio", " is damaged or no .xlsx: "),
    "footer.parquet": (b"audio", " is damaged or no .parquet: "),
}


@pytest.mark.parametrize("name", OPENING)
def test_trouble_is_told_by_the_flag_that_named_the_table(tmp_path: Path, name: str) -> None:
    """The evaluation reads tables too, and must not send its user to a flag that it does not have."""
    content, told = OPENING[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        open_table(tmp_path / name, "--also")
    assert str(raised.value).startswith(f"--also {tmp_path / name}{told}")


def test_trouble_that_comes_with_the_rows_is_told_so_too(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"audio": [1.5], "text": ["네"]}), tmp_path / "t.parquet")
    table = open_table(tmp_path / "t.parquet", "--data")
    with pytest.raises(UserError) as raised:
        next(table.records(Columns("audio", "text")))
    told = f"--data {tmp_path / 't.parquet'}: column 'audio' is double, but paths or bytes are needed"
    assert str(raised.value) == told
