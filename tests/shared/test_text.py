"""Text cleaning: what goes into labels and references, and into CER; caption marks; how much is to be said."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.shared.text import clean_text, count_syllables, strip_caption_marks

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


# Caption marks


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("(웃음) 안녕하세요", "안녕하세요"),
        ("안녕하세요 [음악]", "안녕하세요"),
        ("♪ 노래합니다 ♪", "노래합니다"),
        ("- 어디 가요? - 집에요", "어디 가요? 집에요"),
        ("–어디 가요? —집에요", "어디 가요? 집에요"),
        (">> 다음 소식입니다", "다음 소식입니다"),
        (">>> 기자: 네 >> 앵커", "기자: 네 앵커"),
        ("（박수）［환호］【자막】 끝", "끝"),
        ("그는 (크게 (아주) 웃으며) 말했다", "그는 말했다"),
        ("(웃음) ♪ [음악]", ""),
        ("- ", "-"),
    ],
)
def test_caption_marks_go(text: str, spoken: str) -> None:
    assert strip_caption_marks(clean_text(text)) == spoken


@pytest.mark.parametrize(
    "text",
    ["영하 -3도", "2024-05-17", "e-메일", "3 > 2", "a (b", "끝) 그리고 (", "코로나-19 백신", "1:1로 비겼습니다", ""],
)
def test_what_is_no_caption_mark_stays(text: str) -> None:
    """Numbers below zero, dates, compounds, brackets without a partner."""
    assert strip_caption_marks(text) == text


@given(st.lists(st.sampled_from(["(", ")", "[", "]", "-", ">>", "♪", " ", "가", "3"]), max_size=14).map("".join))
@REPEATABLE
def test_stripping_leaves_a_clean_text(text: str) -> None:
    spoken = strip_caption_marks(clean_text(text))
    assert clean_text(spoken) == spoken
    assert "♪" not in spoken
    assert ">>" not in spoken
    assert set(spoken) <= {*text, " "}


def test_a_text_of_brackets_alone_takes_no_night() -> None:
    """One pass for each level would be 50,000 passes over 100,000 characters."""
    assert strip_caption_marks("(" * 50_000 + ")" * 50_000)


# Syllables


@pytest.mark.parametrize(
    ("text", "syllables"),
    [
        ("안녕하세요", 5),
        ("저는 3시에 갔다", 7),
        ("whisper", 2),
        ("BBC 뉴스", 3),
        ("queue", 1),
        ("東京へ行く", 5),
        ("ㅋㅋㅋ ... !?", 0),
        ("ภาษาไทย", 0),
        ("", 0),
    ],
)
def test_syllables(text: str, syllables: int) -> None:
    assert count_syllables(text) == syllables


@given(ANY_TEXT, ANY_TEXT)
@REPEATABLE
def test_two_texts_have_the_syllables_of_both(left: str, right: str) -> None:
    assert count_syllables(f"{left} {right}") == count_syllables(left) + count_syllables(right)
