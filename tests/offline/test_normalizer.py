"""The normaliser: what is taken away, what stays, and that it is all told."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.offline.normalizer import Normalizer

normalize = Normalizer()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("안녕하세요, 여러분!", "안녕하세요 여러분"),
        ("그…그래?네.", "그 그래 네"),
        ("“안녕”이라고 ‘나’는 '너'는", "안녕이라고 나는 너는"),
        ("(주)삼성 『책』에서", "주삼성 책에서"),
        ("초·중·고 초ㆍ중ㆍ고", "초중고 초중고"),
        ("Wi-Fi It's", "wifi its"),
        ("#해시 a@b ♪음악♪ ❤️ 👍🏽", "해시 a b 음악"),
        ("  여러   칸\n\t줄 ", "여러 칸 줄"),
    ],
)
def test_signs_go_and_words_stay_whole(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3.5%가 올랐다.", "3.5%가 올랐다"),
        ("1,234,567원, 12,34 1,2345", "1234567원 12 34 1 2345"),
        ("$5 5 $ ₩1,000", "$5 5 $ ₩1000"),
        ("3℃ 3°C 36.5 ℉", "3°c 3°c 36.5 °f"),
        ("% $ 만 있다", "만 있다"),
        ("끝. 3. 가.나 3.가 가.3", "끝 3 가 나 3 가 가 3"),
        ("010-1234-5678", "01012345678"),
    ],
)
def test_what_is_read_aloud_with_a_number_stays(text, expected):
    """3.5 is not 35, and 3% is not 3; the comma of thousands is not read."""
    assert normalize(text) == expected


def test_numerals_are_not_read_out():
    assert normalize("3시") != normalize("세 시")


@pytest.mark.parametrize(
    ("text", "expected"), [("ＡＢＣ１２３％", "abc123%"), ("ﾡﾱ", "ㄱㅁ"), ("가　나", "가 나"), ("5㎞ ㎏", "5km kg")]
)
def test_width_forms_become_the_usual_characters(text, expected):
    assert normalize(text) == expected


def test_compatibility_jamo_are_content():
    """NFKC would make 가 of ㄱㅏ, and initial consonants of ㅋㅋㅋ; ② and ½ are no matter of width."""
    assert normalize("ㅋㅋㅋ ㄱㅏ ㅠㅠ ②½") == "ㅋㅋㅋ ㄱㅏ ㅠㅠ ②½"


def test_invisible_characters_go():
    assert normalize("가\u200b나\u3164다\ufeff\u115f라\ufe0f\u00ad") == "가나다라"


def test_decomposed_text_is_the_same_text():
    text = "각하와 값, Café"
    assert normalize(unicodedata.normalize("NFD", text)) == normalize(text) == "각하와 값 café"


@given(st.text(max_size=30))
def test_a_normal_form_stays_as_it_is(text):
    assert normalize(normalize(text)) == normalize(text)


@given(st.text("가3.,% $₩°-'\"()ㆍA１％ \u3164…ﾡ", max_size=12))
def test_a_normal_form_stays_as_it_is_around_numbers(text):
    assert normalize(normalize(text)) == normalize(text)


@pytest.mark.parametrize(
    ("option", "kept", "rule"),
    [("fold_width", "Ａ", "squared"), ("fold_case", "A", "Capitals"), ("strip_signs", "a,", "Punctuation")],
)
def test_a_rule_that_is_off_is_neither_applied_nor_told(option, kept, rule):
    without = Normalizer(**{"fold_case": False, option: False})
    assert without(kept) == kept
    assert not any(rule in line for line in without.describe())
    assert any(rule in line for line in normalize.describe())
