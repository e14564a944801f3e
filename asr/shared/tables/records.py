"""Records: what the rows of a table hold, whatever its format. A bad row does not end the reading."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr.shared.tables.cells import printable
from asr.shared.tables.columns import Columns
from utils import UserError, WhisperError


@dataclass(frozen=True)
class Malformed:
    """A row that cannot be read, and why."""

    detail: str


Numbered = tuple[int, dict[str, Any] | Malformed]


@dataclass(frozen=True)
class Table:
    """A file of records.

    Attributes:
        names: the columns.
        count: how many records there are.
        records: gives, for the columns that are needed, the number of each row as an editor or Excel shows it, and
            what it holds.
    """

    names: list[str]
    count: Callable[[], int]
    records: Callable[[Columns], Iterator[Numbered]]


@contextlib.contextmanager
def trouble_told(path: Path, where: str, *expected: type[Exception]) -> Iterator[None]:
    """Turn what goes wrong while a table is read into one line.

    Args:
        path: the table.
        where: what messages begin with, as "--table calls.csv".
        expected: what a damaged table raises, beyond OSError and UnicodeError.
    """
    try:
        yield
    except WhisperError:
        raise
    except UnicodeError as error:
        raise UserError(f"{where}: {error}") from None
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or _first_line(error)}") from None
    except expected as error:
        raise UserError(f"{where} is damaged or no {path.suffix}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return printable((str(error).splitlines() or [type(error).__name__])[0], 200)
