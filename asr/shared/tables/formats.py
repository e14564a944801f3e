"""Formats: which reader the name of a table calls for, and what every table must have."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from asr.shared.tables.binary_table import parquet_table, xlsx_table
from asr.shared.tables.cells import printable
from asr.shared.tables.records import Table
from asr.shared.tables.text_table import delimited_table, json_table
from utils import UserError

READERS = {".csv": delimited_table, ".tsv": delimited_table, ".jsonl": json_table, ".ndjson": json_table}
READERS |= {".parquet": parquet_table, ".xlsx": xlsx_table}


def open_table(path: Path, flag: str) -> Table:
    """Look into a table of any format.

    Args:
        path: the table.
        flag: what named it, as --table; messages begin with it and the path.

    Raises:
        UserError: it is missing, damaged or empty, its format is none of ours, or two columns have one name.
    """
    where = f"{flag} {path}"
    reader = READERS.get(path.suffix.lower())
    if not os.path.exists(path):
        raise UserError(f"{where}: there is no such file")
    if reader is None:
        raise UserError(f"{where}: the name of a table must end in {' '.join(READERS)}")
    table = reader(path, where)
    names = Counter(name for name in table.names if name)
    twice = [name for name, times in names.items() if times > 1]
    if twice:
        raise UserError(f"{where}: two columns are called '{printable(twice[0])}': rename one")
    if not names:
        raise UserError(f"{where} is empty: its first row must name the columns")
    return table
