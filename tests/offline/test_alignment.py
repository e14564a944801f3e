"""Alignment: every character of both texts is shown once, and the errors shown are those that are counted."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.offline.alignment import Confusions, align, confusions
from asr.offline.error_rates import score, without_spaces
from asr.offline.normalizer import Normalizer
from asr.shared.text import clean_text

TEXT = st.text("가나다라 ", max_size=12)


def shown(reference: str, hypothesis: str) -> list[tuple[str, str, str]]:
    return [(segment.kind, segment.reference, segment.hypothesis) for segment in align(reference, hypothesis)]


def test_hand_worked_example():
    """학교 became 하꼬, 빨리 was added with the space before it; the spaces of both texts stand in both."""
    assert shown("나는 학교에 갔다", "나는 하꼬에 빨리 갔다") == [
        ("equal", "나는 ", "나는 "),
        ("substitute", "학교", "하꼬"),
        ("equal", "에", "에"),
        ("insert", "", " 빨리"),
        ("equal", " 갔다", " 갔다"),
    ]


def test_a_space_of_one_text_alone_is_no_error():
    assert shown("세 글자", "세글 자") == [
        ("equal", "세", "세"),
        ("space", " ", ""),
        ("equal", "글", "글"),
        ("space", "", " "),
        ("equal", "자", "자"),
    ]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("가 나다", "가 다", [("equal", "가 ", "가 "), ("delete", "나", ""), ("equal", "다", "다")]),
        ("가 나 다", "가 다", [("equal", "가", "가"), ("delete", " 나", ""), ("equal", " 다", " 다")]),
        ("가나 다", "가 다", [("equal", "가", "가"), ("delete", "나", ""), ("equal", " 다", " 다")]),
        ("가 다", "가 나다", [("equal", "가 ", "가 "), ("insert", "", "나"), ("equal", "다", "다")]),
        ("가나다", "가 다", [("equal", "가", "가"), ("delete", "나", ""), ("space", "", " "), ("equal", "다", "다")]),
    ],
)
def test_a_missed_or_added_word_takes_one_space_with_it(reference, hypothesis, expected):
    """가 나다 heard as 가 다 misses 나 and no space, wherever the alignment puts it."""
    assert shown(reference, hypothesis) == expected


def test_empty_texts():
    assert shown("", "가 나") == [("insert", "", "가 나")]
    assert shown("가 나", " ") == [("delete", "가 나", "")]
    assert shown("", "") == []


@given(TEXT, TEXT)
def test_all_of_both_texts_is_shown_and_the_errors_are_those_of_cer(reference, hypothesis):
    segments = align(reference, hypothesis)
    assert "".join(segment.reference for segment in segments) == clean_text(reference)
    assert "".join(segment.hypothesis for segment in segments) == clean_text(hypothesis)
    told = dict.fromkeys(("equal", "substitute", "delete", "insert", "space"), 0)
    for segment in segments:
        told[segment.kind] += len(without_spaces(segment.reference or segment.hypothesis))
        if segment.kind == "equal":
            assert segment.reference == segment.hypothesis
    counted = score([hypothesis, "가"], [reference, "가"])["cer"]
    assert told["equal"] == counted.hits[0]
    assert told["substitute"] == counted.substitutions[0]
    assert told["delete"] == counted.deletions[0]
    assert told["insert"] == counted.insertions[0]
    assert told["space"] == 0


@given(TEXT, TEXT)
def test_neighbouring_segments_differ(reference, hypothesis):
    kinds = [segment.kind for segment in align(reference, hypothesis)]
    assert all(left != right for left, right in pairwise(kinds))


def test_confused_syllables_are_counted_the_most_frequent_first():
    """은 became 는 twice and 씨 became 시 once; 요 was missed twice and 네 once, 아 and 주 were added."""
    references = ["날씨 좋아요", "은 가요", "은", "좋다", "네"]
    predictions = ["날시 좋아", "는가", "는", "아주 좋다", ""]
    assert confusions(predictions, references) == Confusions(
        substituted=[("은", "는", 2), ("씨", "시", 1)],
        deleted=[("요", 2), ("네", 1)],
        inserted=[("아", 1), ("주", 1)],
    )


def test_a_normalizer_keeps_signs_out_of_the_confusions():
    assert confusions(["네."], ["네"]).inserted == [(".", 1)]
    assert confusions(["네."], ["네"], Normalizer()) == Confusions()


def test_as_many_predictions_as_references():
    with pytest.raises(ValueError, match="zip"):
        confusions(["가"], ["가", "나"])
