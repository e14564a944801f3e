"""Encodings: which one a text file is in, of those in which Korean text is kept."""

from __future__ import annotations

import codecs
import io
from typing import BinaryIO

BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
HEAD = 1 << 16
CHUNK = 1 << 18


def find_encoding(file: BinaryIO) -> str:
    """Return the first encoding in which a whole file is valid: what its BOM says; or else UTF-16, UTF-8, CP949.

    Args:
        file: a file at its beginning; it is read in chunks, once for each encoding that is tried.

    Raises:
        UnicodeError: there is none; the message tells the bytes.
    """
    head = file.read(HEAD)
    marked = next((encoding for bom, encoding in BOMS.items() if head.startswith(bom)), None)
    candidates = [marked] if marked else [*_without_bom(head), "utf-8", "cp949"]
    misfits = {}
    for encoding in candidates:
        misfit = _first_misfit(file, encoding)
        if misfit is None:
            return encoding
        misfits[encoding.removesuffix("-sig").upper()] = misfit
    found = ", nor ".join(f"{name} (byte {misfit} does not fit)" for name, misfit in misfits.items())
    raise UnicodeError(f"the text is not {found}: save it as UTF-8")


def decode(data: bytes) -> str:
    """Return the text of a small file, without its BOM.

    Raises:
        UnicodeError: it is in none of the encodings.
    """
    return data.decode(find_encoding(io.BytesIO(data)))


def _without_bom(head: bytes) -> list[str]:
    """Return the UTF-16 that a head without BOM looks like: ASCII characters have a NUL on one side, always the same.

    A UTF-8 file with stray NULs is none: it holds ASCII characters side by side, or Korean ones that fit UTF-8.
    """
    if b"\0" not in head or _is_multibyte_utf8(head):
        return []
    pairs = list(zip(head[::2], head[1::2], strict=False))
    little = sum(0 < left < 128 and not right for left, right in pairs)
    big = sum(not left and 0 < right < 128 for left, right in pairs)
    neither = sum(0 < left < 128 and 0 < right < 128 for left, right in pairs)
    if little == big or max(little, big) <= neither:
        return []
    return ["utf-16-le" if little > big else "utf-16-be"]


def _is_multibyte_utf8(head: bytes) -> bool:
    try:
        return not codecs.getincrementaldecoder("utf-8")().decode(head).isascii()
    except UnicodeDecodeError:
        return False


def _first_misfit(file: BinaryIO, encoding: str) -> int | None:
    """Return the first byte that `encoding` cannot decode, counted from 0, or None."""
    # utf-8-sig counts from behind the BOM.
    decoder = codecs.getincrementaldecoder("utf-8" if encoding == "utf-8-sig" else encoding)()
    file.seek(0)
    read = 0
    while True:
        chunk = file.read(CHUNK)
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            return read - pending + error.start
        if not chunk:
            return None
        read += len(chunk)
