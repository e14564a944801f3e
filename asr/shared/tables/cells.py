"""Cells: what a table holds in one place, as text; and text as a message may show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def as_text(value: Any) -> str:
    """Return a cell as text: nothing as "", a whole number that a spreadsheet made a float without its .0."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return str(value)


def flaw(cell: Any) -> str:
    """Say why no text can be made of a cell, or "".

    Half a surrogate pair comes from a broken escape in JSON, and no file could be written with it.
    """
    if isinstance(cell, Mapping | list | tuple | set):
        return f"a {type(cell).__name__}"
    try:
        text = cell.decode() if isinstance(cell, bytes) else cell
        if isinstance(text, str) and b"\0" in text.encode():
            return "a NUL character"
    except UnicodeDecodeError:
        return "bytes that are no UTF-8"
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return ""


def printable(text: str, longest: int | None = 40) -> str:
    """Return `text` fit for a message: in one line, with escapes for what has no shape, cut to its beginning."""
    shown = text if longest is None or len(text) <= longest else text[:longest] + "…"
    return shown if shown.isprintable() else repr(shown)[1:-1]
