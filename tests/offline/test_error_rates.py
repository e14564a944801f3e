"""Error rates: equal to jiwer and to counting by hand."""

from __future__ import annotations

import unicodedata

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.offline.error_rates import error_rates

KOREAN = st.text("가나다라마바사 아자차카", min_size=1, max_size=20)


def test_hand_counted_example():
    """안녕하세요 여러분 -> 안넝하세요여러분: 1 of 8 syllables; with spaces 2 of 9; both words are wrong."""
    rates = error_rates(["안넝하세요여러분"], ["안녕하세요 여러분"])
    assert rates == {"cer": pytest.approx(1 / 8), "cer_with_spaces": pytest.approx(2 / 9), "wer": pytest.approx(1.0)}


def test_rates_are_micro_averages():
    """One wrong syllable of ten is 0.1, however the ten are spread over utterances."""
    assert error_rates(["나", "가나다라마바사아자"], ["가", "가나다라마바사아자"])["cer"] == pytest.approx(0.1)


def test_the_same_text_in_nfd_is_no_error():
    text = "각하와 값"
    assert error_rates([unicodedata.normalize("NFD", text)], [text]) == {"cer": 0, "cer_with_spaces": 0, "wer": 0}


def test_an_empty_output_is_all_deletions():
    assert error_rates([""], ["세 글자"])["cer"] == 1.0


def test_rates_above_one_are_told():
    assert error_rates(["가나다라"], ["하"])["cer"] == 4.0


def test_no_reference_at_all_is_refused():
    with pytest.raises(ValueError, match="not empty"):
        error_rates(["가"], [" "])


@given(st.lists(st.tuples(KOREAN.filter(str.strip), KOREAN), min_size=1, max_size=8))
def test_equal_to_jiwer(pairs):
    references = [" ".join(r.split()) for r, _ in pairs]
    predictions = [" ".join(p.split()) for _, p in pairs]
    rates = error_rates(predictions, references)
    assert rates["cer_with_spaces"] == pytest.approx(jiwer.cer(references, predictions))
    assert rates["wer"] == pytest.approx(jiwer.wer(references, predictions))
