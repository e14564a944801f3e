"""Tables that are text: CSV, TSV and JSON Lines, read line by line."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from asr.shared.tables.cells import printable
from asr.shared.tables.columns import Columns
from asr.shared.tables.encoding import find_encoding
from asr.shared.tables.records import Malformed, Numbered, Table, trouble_told
from utils import UserError, log

LONGEST_LINE = 1 << 20
# So many lines of a JSON Lines file tell which columns there are.
FIRST_LINES = 1000


class _Lines:
    """The lines of a file, for a parser that may take several for one record.

    Attributes:
        taken: those of the current record.
        number: of the first of them, from 1.
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.taken: list[str] = []
        self.again: deque[str] = deque()
        self.number = 1

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.again.popleft() if self.again else self._read()
        if not line:
            raise StopIteration
        self.taken.append(line)
        if len(line) == LONGEST_LINE:
            raise csv.Error(f"the line is longer than {LONGEST_LINE} characters")
        return line

    def _read(self) -> str:
        """Return the next line, cut to its beginning where it is too long."""
        line = piece = self.file.readline(LONGEST_LINE)
        while len(piece) == LONGEST_LINE and piece[-1] not in "\r\n":
            piece = self.file.readline(LONGEST_LINE)
        return line

    def begin(self) -> None:
        """Say that a new record begins."""
        self.number += len(self.taken)
        self.taken.clear()

    def give_back(self) -> None:
        """Take a bad record for one bad line, so that a quotation mark without a second one costs no good rows."""
        self.again.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


@contextlib.contextmanager
def _lines(path: Path, encoding: str, where: str) -> Iterator[_Lines]:
    with trouble_told(path, where), open(path, encoding=encoding, newline="") as file:
        yield _Lines(file)


def _encoding_of(path: Path, where: str) -> str:
    with trouble_told(path, where), open(path, "rb") as file:
        return find_encoding(file)


# CSV and TSV


def delimited_table(path: Path, where: str) -> Table:
    """Look into a CSV or TSV; its first line with any content is the header."""
    encoding = _encoding_of(path, where)
    with _lines(path, encoding, where) as lines:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(lines)
    with _lines(path, encoding, where) as lines:
        header = next(_cells(lines, delimiter), [])
    if isinstance(header, Malformed):
        raise UserError(f"{where}: the header cannot be read: {header.detail}")
    names = [name.strip() for name in header]

    @functools.cache
    def bare_line() -> int:
        if path.suffix.lower() != ".tsv":
            return 0
        with _lines(path, encoding, where) as lines:
            return _bare_line(lines, len(names))

    def rows() -> Iterator[tuple[int, list[str] | Malformed]]:
        with _lines(path, encoding, where) as lines:
            cells = _cells(lines, delimiter, bare=bare_line() > 0)
            next(cells, None)
            for row in cells:
                yield lines.number, row

    def count() -> int:
        if bare_line():
            log.info("%s: quotation marks are read as part of the text, because of line %d", path, bare_line())
        return sum(1 for _ in rows())

    def records(columns: Columns) -> Iterator[Numbered]:
        for number, cells in rows():
            yield number, cells if isinstance(cells, Malformed) else _record(cells, names, columns)

    return Table(names, count, records)


def _delimiter(lines: _Lines) -> str:
    """Return what separates the columns of a header: the commonest outside quotation marks."""
    with contextlib.suppress(csv.Error):
        header = "".join(next((line for line in lines if line.strip()), "").split('"')[::2])
        return max(",;\t", key=header.count)
    return ","


def _cells(lines: _Lines, delimiter: str, bare: bool = False) -> Iterator[list[str] | Malformed]:
    """Yield the cells of the header and of each row; lines without any content are none."""
    reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if bare else csv.QUOTE_MINIMAL, strict=True)
    while True:
        lines.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.give_back()
            yield Malformed(str(error))
            continue
        if any(cell and not cell.isspace() for cell in cells):
            yield cells


def _bare_line(lines: _Lines, columns: int) -> int:
    """Return the first line that shows that a TSV's quotation marks are part of the text, as in Common Voice, or 0.

    They are where they break the rules by which Excel quotes, and where obeying them would join whole rows into one.
    """
    for cells in _cells(lines, "\t"):
        joined = len(lines.taken) > 1 and all(line.count("\t") == columns - 1 for line in lines.taken)
        if joined or (isinstance(cells, Malformed) and '"' in lines.taken[0]):
            return lines.number
    return 0


def _record(cells: list[str], names: list[str], columns: Columns) -> dict[str, Any] | Malformed:
    record = dict(zip(names, cells, strict=False))
    if len(cells) > len(names) or not {columns.audio, columns.text} <= record.keys():
        return Malformed(f"number of cells: {len(cells)}, in the header: {len(names)}")
    if any("\0" in cell for cell in cells):
        return Malformed("a cell holds a NUL character")
    return record


# JSON Lines


def json_table(path: Path, where: str) -> Table:
    """Look into a JSON Lines file; its first objects tell the columns."""
    encoding = _encoding_of(path, where)

    def records(_: Columns | None = None) -> Iterator[Numbered]:
        with _lines(path, encoding, where) as lines:
            for number, line in _filled(lines):
                yield number, line if isinstance(line, Malformed) else _parsed(line)

    def count() -> int:
        with _lines(path, encoding, where) as lines:
            return sum(1 for _ in _filled(lines))

    names: dict[str, None] = {}
    for _, (_, record) in zip(range(FIRST_LINES), records(), strict=False):
        if isinstance(record, dict):
            names |= dict.fromkeys(record)
    if not names:
        raise UserError(f"{where}: no line is a JSON object; it must be one object a line")
    return Table(list(names), count, records)


def _filled(lines: _Lines) -> Iterator[tuple[int, str | Malformed]]:
    while True:
        lines.begin()
        try:
            line = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            yield lines.number, Malformed(str(error))
            continue
        if not line.isspace():
            yield lines.number, line


def _parsed(line: str) -> dict[str, Any] | Malformed:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return Malformed(f"no JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return Malformed(f"no JSON: {printable(str(error), 200)}")
    return value if isinstance(value, dict) else Malformed("no JSON object")
