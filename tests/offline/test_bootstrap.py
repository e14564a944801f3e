"""Bootstrap: intervals hold the truth as often as they promise, and systems are compared on the same draws."""

from __future__ import annotations

import numpy as np
import pytest

from asr.offline import bootstrap
from asr.offline.bootstrap import Difference, Interval, interval, paired_difference

CORPORA = 400
UTTERANCES = 150


def corpus(rng: np.random.Generator, utterances: int = UTTERANCES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw lengths and the errors of two systems: 12 % and 10 %, both worse on the same hard utterances."""
    lengths = rng.integers(3, 40, utterances)
    hardness = rng.gamma(2.0, 0.5, utterances)
    return lengths, *(rng.binomial(lengths, np.minimum(rate * hardness, 1.0)) for rate in (0.12, 0.10))


def true_rates() -> tuple[float, float]:
    """The rates that the corpora are drawn from, by a corpus large enough."""
    lengths, a, b = corpus(np.random.default_rng(0), 2_000_000)
    return a.sum() / lengths.sum(), b.sum() / lengths.sum()


def test_intervals_hold_the_truth_in_95_of_100_corpora():
    """The rate, and the paired difference of two systems; binomial chance around 95 % is 1.1 % a standard error."""
    rng = np.random.default_rng(1)
    rate_a, rate_b = true_rates()
    rates = differences = 0
    for seed in range(CORPORA):
        lengths, a, b = corpus(rng)
        found = interval(a, lengths, resamples=500, seed=seed)
        change = paired_difference(a, b, lengths, resamples=500, seed=seed)
        rates += found.low <= rate_a <= found.high
        differences += change.low <= rate_b - rate_a <= change.high
    assert 0.92 <= rates / CORPORA <= 0.98
    assert 0.92 <= differences / CORPORA <= 0.98


def test_speakers_who_differ_need_clusters():
    """30 speakers of 10 utterances, some of them easy and some hard: drawing utterances promises too much."""
    rng = np.random.default_rng(2)
    speakers = np.repeat([f"s{number}" for number in range(30)], 10)
    lengths = np.full(300, 20)
    held = {"utterances": 0, "speakers": 0}
    for seed in range(200):
        rates = np.repeat(rng.beta(2, 18, 30), 10)
        errors = rng.binomial(lengths, rates)
        for unit, clusters in (("utterances", None), ("speakers", speakers)):
            found = interval(errors, lengths, resamples=300, seed=seed, clusters=clusters)
            held[unit] += found.low <= 0.1 <= found.high
    assert held["utterances"] / 200 < 0.75
    assert 0.89 <= held["speakers"] / 200 <= 0.98


def test_two_utterances_by_hand():
    """One right, one wrong, of one character each: the four draws have the rates 0, 1/2, 1/2 and 1."""
    assert interval(np.array([0, 1]), np.array([1, 1])) == Interval(0.5, 0.0, 1.0)
    assert interval(np.array([0, 1]), np.array([1, 1]), confidence=0.4) == Interval(0.5, 0.5, 0.5)


def test_a_rate_that_is_the_same_everywhere_has_no_width():
    found = interval(np.array([1, 2, 3]), np.array([10, 20, 30]))
    assert (found.rate, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_a_rate_is_a_micro_average():
    assert interval(np.array([1, 0]), np.array([1, 9])).rate == pytest.approx(0.1)


def test_one_utterance_tells_nothing_about_others():
    assert interval(np.array([1]), np.array([4])) == Interval(0.25, None, None)
    assert interval(np.array([1, 1]), np.array([4, 4]), clusters=["s", "s"]) == Interval(0.25, None, None)
    assert paired_difference(np.array([2]), np.array([1]), np.array([4])) == Difference(-0.25, None, None, None, None)


def test_the_same_seed_draws_the_same():
    lengths, a, _ = corpus(np.random.default_rng(3))
    assert interval(a, lengths, seed=5) == interval(a, lengths, seed=5)
    assert interval(a, lengths, seed=5) != interval(a, lengths, seed=6)


def test_draws_do_not_hang_on_how_many_are_held_at_once(monkeypatch):
    lengths, a, _ = corpus(np.random.default_rng(4))
    at_once = interval(a, lengths)
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 7 * UTTERANCES + 3)
    assert interval(a, lengths) == at_once


def test_systems_are_compared_on_the_same_draws():
    """What is hard for both falls out: the interval of the difference is narrower than that of either rate."""
    lengths, a, _ = corpus(np.random.default_rng(5))
    one_less = np.maximum(a - 1, 0)
    alone, change = interval(a, lengths), paired_difference(a, one_less, lengths)
    assert change.high - change.low < (alone.high - alone.low) / 2
    assert change.difference == pytest.approx((one_less.sum() - a.sum()) / lengths.sum())
    assert (change.share_better, change.share_worse) == (1.0, 0.0)


def test_which_system_is_better_is_told_by_its_sign():
    lengths, a, b = corpus(np.random.default_rng(6))
    change, back = paired_difference(a, b, lengths), paired_difference(b, a, lengths)
    assert (back.difference, back.low, back.high) == pytest.approx((-change.difference, -change.high, -change.low))
    assert (back.share_better, back.share_worse) == (change.share_worse, change.share_better)


def test_a_system_is_neither_better_nor_worse_than_itself():
    lengths, a, _ = corpus(np.random.default_rng(7))
    assert paired_difference(a, a, lengths) == Difference(0.0, 0.0, 0.0, 0.0, 0.0)


def test_insertions_over_empty_references_count():
    """4 of 5 utterances have no reference: a draw without the fifth has no rate, and is left out."""
    errors, lengths = np.array([1, 1, 1, 1, 0]), np.array([0, 0, 0, 0, 10])
    found = interval(errors, lengths)
    assert found.rate == 0.4
    assert np.isfinite([found.low, found.high]).all()


def test_what_cannot_be_resampled_is_refused():
    with pytest.raises(ValueError, match="not empty"):
        interval(np.array([1, 2]), np.array([0, 0]))
    with pytest.raises(ValueError, match="one length"):
        interval(np.array([1, 2]), np.array([3, 3]), clusters=["s"])
    with pytest.raises(ValueError, match="one length"):
        paired_difference(np.array([1]), np.array([1, 2]), np.array([3, 3]))
