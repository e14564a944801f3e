"""Slices: every utterance stands in one group of each kind, and the groups' rates are counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from asr.offline.bootstrap import Interval, interval
from asr.offline.slices import binned, slice_rates

# 20 utterances of 2 s and 8 characters, one of 15 s and 60 characters, one without text.
REFERENCES = ["가나다라 마바사아"] * 20 + ["가나다 " * 20, ""]
DURATIONS = [2.0] * 20 + [15.0, 1.0]
ERRORS = np.array([0, 1, 2, 3, 4] * 4 + [6, 2])
LENGTHS = np.array([8] * 20 + [60, 0])
SPEAKERS = ["b"] * 15 + ["c"] * 5 + ["a", ""]


def rows(**more: object) -> list[tuple]:
    found = slice_rates(ERRORS, LENGTHS, references=REFERENCES, durations_s=DURATIONS, **more)
    return [(row.by, row.group, row.utterances, row.cer.rate if row.cer else None, row.small) for row in found]


def test_hand_counted_slices():
    """40 errors of 160 characters at 4 syllables a second, 6 of 60 at 4; the empty one has a slice and no rate."""
    assert rows(speakers=SPEAKERS) == [
        ("duration", "under 2 s", 1, None, True),
        ("duration", "2 to 4 s", 20, 0.25, False),
        ("duration", "15 to 20 s", 1, 0.1, True),
        ("rate", "under 2 syllables/s", 1, None, True),
        ("rate", "4 to 5 syllables/s", 21, pytest.approx(46 / 220), False),
        ("length", "under 6 characters", 1, None, True),
        ("length", "6 to 10 characters", 20, 0.25, False),
        ("length", "41 to 80 characters", 1, 0.1, True),
        ("speaker", "b", 15, 0.25, True),
        ("speaker", "c", 5, 0.25, True),
        ("speaker", "a", 1, 0.1, True),
        ("speaker", "unknown", 1, None, True),
    ]


def test_hours_and_intervals():
    """5 utterances have an interval, one has none."""
    options = {"references": REFERENCES, "durations_s": DURATIONS, "speakers": SPEAKERS}
    found = {row.group: row for row in slice_rates(ERRORS, LENGTHS, resamples=200, seed=3, **options)}
    assert found["2 to 4 s"].hours == pytest.approx(40 / 3600)
    assert found["2 to 4 s"].cer == interval(ERRORS[:20], LENGTHS[:20], resamples=200, seed=3)
    assert found["c"].cer == interval(ERRORS[15:20], LENGTHS[15:20], resamples=200, seed=3)
    assert found["a"].cer == Interval(0.1, None, None)


def test_what_nobody_named_gives_no_slice():
    assert rows(speakers=[""] * 22, sources=[None] * 22) == rows()
    assert {row[0] for row in rows()} == {"duration", "rate", "length"}


def test_sources_stand_with_the_largest_first():
    found = rows(sources=["kss", "call"] * 9 + ["call", "call", None, "zeroth"])
    groups = [(group, utterances) for by, group, utterances, *_ in found if by == "source"]
    assert groups == [("call", 11), ("kss", 9), ("zeroth", 1), ("unknown", 1)]


def test_each_edge_belongs_to_the_group_above():
    assert binned("duration", np.array([0, 1.99, 2, 19.99, 20, 300, np.nan])) == [
        "under 2 s",
        "under 2 s",
        "2 to 4 s",
        "15 to 20 s",
        "20 s and more",
        "20 s and more",
        "unknown",
    ]
    assert binned("length", np.array([0, 5, 6, 10, 11, 80, 81])) == [
        "under 6 characters",
        "under 6 characters",
        "6 to 10 characters",
        "6 to 10 characters",
        "11 to 20 characters",
        "41 to 80 characters",
        "81 characters and more",
    ]


def test_a_clip_of_no_length_has_no_rate_of_speech():
    found = slice_rates(np.array([0]), np.array([2]), references=["가나"], durations_s=[0.0])
    assert [row.group for row in found if row.by == "rate"] == ["unknown"]


def test_every_utterance_stands_in_one_group_of_each_kind():
    found = rows(speakers=SPEAKERS, sources=["x"] * 22)
    for by in ("duration", "rate", "length", "speaker", "source"):
        assert sum(row[2] for row in found if row[0] == by) == len(REFERENCES)


def test_columns_of_another_length_are_refused():
    with pytest.raises(ValueError, match="speaker: 1 values for 22 utterances"):
        rows(speakers=["a"])
