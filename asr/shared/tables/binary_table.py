"""Tables that need a library to be read: Excel's .xlsx and Apache Parquet."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.shared.tables.cells import as_text, printable
from asr.shared.tables.columns import Columns
from asr.shared.tables.records import Malformed, Numbered, Table, trouble_told
from utils import UserError

if TYPE_CHECKING:
    import pyarrow

# How an old .xls begins, and an .xlsx that has a password.
COMPOUND_FILE = b"\xd0\xcf\x11\xe0"
MOST_ROWS = 1 << 20
# Rows that are in memory at once; one may hold a megabyte of audio.
BATCH = 64
BUFFER = 1 << 20


def xlsx_table(path: Path, where: str) -> Table:
    """Look into the first sheet of a workbook; its first row with any content is the header."""
    _, header = next(_sheet(path, where), (0, ()))
    names = [as_text(name).strip() for name in header]

    def records(columns: Columns) -> Iterator[Numbered]:
        wanted = {name: names.index(name) for name in vars(columns).values() if name}
        rows = _sheet(path, where)
        next(rows, None)
        for number, cells in rows:
            yield number, {name: cells[place] for name, place in wanted.items() if place < len(cells)}

    return Table(names, lambda: max(0, sum(1 for _ in _sheet(path, where)) - 1), records)


def _sheet(path: Path, where: str) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the rows of the first sheet that hold anything, with the numbers that Excel gives them."""
    import openpyxl

    # What else a workbook holds, such as drop-down lists, is of no matter here.
    warnings.filterwarnings("ignore", module="openpyxl")
    # A damaged workbook makes openpyxl raise whatever its parsers happen to meet.
    with trouble_told(path, where, Exception):
        with open(path, "rb") as file:
            if file.read(4) == COMPOUND_FILE:
                raise UserError(f"{where} has a password or is an old .xls: save it as .xlsx without one")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
        try:
            if not book.worksheets:
                raise UserError(f"{where} has no sheet that can be read: save it as an Excel workbook (.xlsx)")
            sheet = book.worksheets[0]
            # Some programs write a wrong size into the sheet; without one all of it is read.
            sheet.reset_dimensions()
            for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
                if number > MOST_ROWS:
                    raise UserError(f"{where} is damaged: it has more than {MOST_ROWS} rows")
                if any(cell is not None and not str(cell).isspace() for cell in cells):
                    yield number, cells
        finally:
            book.close()


def parquet_table(path: Path, where: str) -> Table:
    """Look into the footer of a Parquet file."""
    from pyarrow.parquet import ParquetFile

    with trouble_told(path, where, Exception), ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows

    def records(columns: Columns) -> Iterator[Numbered]:
        kind = schema.field(columns.audio).type
        if not _can_hold_audio(kind):
            raise UserError(f"{where}: column '{columns.audio}' is {kind}, but paths or bytes are needed")
        number = 0
        # Buffered and not read ahead, for a row group may be larger than the memory.
        buffered = {"buffer_size": BUFFER, "pre_buffer": False}
        with trouble_told(path, where, Exception), ParquetFile(path, **buffered) as file:
            for batch in file.iter_batches(BATCH, columns=[name for name in vars(columns).values() if name]):
                for record in _as_records(batch):
                    number += 1
                    yield number, record
            if number != rows:
                raise UserError(f"{where} is damaged: its footer promises {rows} rows, and it holds {number}")

    return Table(schema.names, lambda: rows, records)


def _as_records(batch: pyarrow.RecordBatch) -> list[dict[str, Any] | Malformed]:
    try:
        return batch.to_pylist()
    except Exception:
        # One cell is enough, as bytes that are no UTF-8 in a text: then row by row.
        return [_as_record(batch.slice(place, 1)) for place in range(batch.num_rows)]


def _as_record(batch: pyarrow.RecordBatch) -> dict[str, Any] | Malformed:
    try:
        return batch.to_pylist()[0]
    except Exception as error:
        return Malformed(printable(str(error), 200))


def _can_hold_audio(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _can_hold_audio(kind.value_type)
    if types.is_struct(kind):
        return bool({"bytes", "path"} & set(kind.names))
    strings = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return strings or binary or types.is_fixed_size_binary(kind)
