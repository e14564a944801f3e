"""Text cleaning: what goes into labels and references, and into CER."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.shared.text import clean_text

# Letters that compose, jamo, marks that show nothing, white space of many kinds: where cleaning can go wrong.
TRICKY = st.sampled_from("aé가\u1100\u1161\u11a8\u0301e\u200b\u200d\ufeff\u00ad\x00\x07\x1f\x85 \t\n\r\u3000\u00a0")
ANY = st.one_of(st.integers(0, 0xD7FF), st.integers(0xE000, 0x10FFFF)).map(chr)
COMPOSING = st.sampled_from("a\u0301\u1100\u1161\x07\u200b ")
ANY_TEXT = st.one_of([st.lists(char, max_size=8) for char in (COMPOSING, TRICKY, ANY)]).map("".join)
REPEATABLE = settings(derandomize=True, deadline=None, database=None, max_examples=150)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("안녕하세요", "안녕하세요"),
        ("  앞과  뒤\t그리고\n줄 \r\n 바꿈 ", "앞과 뒤 그리고 줄 바꿈"),
        ("전각\u3000공백과 넓은\u00a0공백", "전각 공백과 넓은 공백"),
        ("영\u200b폭\ufeff과\u200d 방향\u200e", "영폭과 방향"),
        ("종\x07소\x00리\x1b", "종소리"),
        ("\u1100\u200b\u1161", "가"),
        ("a\x07\u0301", "á"),
        ('"따옴표", 쉼표; 점.', '"따옴표", 쉼표; 점.'),
        (" \t\u200b\n", ""),
        ("", ""),
    ],
)
def test_examples(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


def test_decomposed_hangul_is_composed() -> None:
    """NFD, as macOS writes file names and some editors write text, becomes the same NFC sentence."""
    sentence = "저는 한국어를 씁니다"
    decomposed = unicodedata.normalize("NFD", sentence)
    assert decomposed != sentence
    assert clean_text(decomposed) == sentence


def test_case_punctuation_and_compatibility_forms_are_kept() -> None:
    """NFC, not NFKC: what the writer meant stays."""
    assert clean_text("ABC ①½ ﬁ ㄱㅏ Ｗ!?") == "ABC ①½ ﬁ ㄱㅏ Ｗ!?"


@given(ANY_TEXT)
@REPEATABLE
def test_cleaning_twice_changes_nothing(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once


@given(ANY_TEXT)
@REPEATABLE
def test_result_is_nfc_and_holds_no_control_characters(text: str) -> None:
    cleaned = clean_text(text)
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not [char for char in cleaned if unicodedata.category(char) in ("Cc", "Cf")]


@given(ANY_TEXT)
@REPEATABLE
def test_white_space_is_single_spaces_between_words(text: str) -> None:
    cleaned = clean_text(text)
    assert cleaned == cleaned.strip()
    assert "  " not in cleaned
    assert [char for char in cleaned if char.isspace() and char != " "] == []


@given(ANY_TEXT)
@REPEATABLE
def test_nfc_and_nfd_of_one_text_come_out_equal(text: str) -> None:
    assert clean_text(unicodedata.normalize("NFD", text)) == clean_text(unicodedata.normalize("NFC", text))
