"""Cells become text as a reader of the table sees them, and text becomes fit for a message."""

from __future__ import annotations

import pytest

from asr.shared.tables.cells import as_text, printable


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
