"""Wording: both languages say everything, and the browser's wish decides which is shown."""

from __future__ import annotations

import re
import string

import pytest

from asr.offline.page.wording import ENGLISH, KOREAN, TEXTS, Refused, language_of


def test_both_languages_have_the_same_texts_with_the_same_places():
    assert TEXTS[ENGLISH].keys() == TEXTS[KOREAN].keys()
    for name in TEXTS[ENGLISH]:
        places = [{place for _, place, _, _ in string.Formatter().parse(TEXTS[code][name])} for code in TEXTS]
        assert places[0] == places[1], name


def test_korean_is_korean():
    assert [name for name, text in TEXTS[KOREAN].items() if not re.search("[가-힣]", text)] == []
    assert [name for name, text in TEXTS[ENGLISH].items() if re.search("[가-힣]", text)] == []


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("ko", KOREAN),
        ("ko-KR,ko;q=0.9,en-US;q=0.8,en;q=0.7", KOREAN),
        ("en-US,en;q=0.9,ko;q=0.8", ENGLISH),
        ("de-DE,de;q=0.9,ko;q=0.5,en;q=0.4", KOREAN),
        ("en;q=0.3, ko;q=0.8", KOREAN),
        ("fr", ENGLISH),
        ("ko;q=0", ENGLISH),
        ("", ENGLISH),
        (None, ENGLISH),
        (";;q=,ko;q=x", KOREAN),
    ],
)
def test_the_language_that_is_liked_best(accepted, language):
    assert language_of(accepted) == language


def test_a_refusal_says_its_reason():
    assert str(Refused("too_long", minutes=3)) == "The recording is longer than 3 minutes, the most that is taken here."
