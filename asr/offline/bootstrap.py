"""Bootstrap intervals of micro-averaged error rates, over utterances or speakers.

Bisani and Ney, Bootstrap estimates for confidence intervals in ASR performance evaluation, ICASSP 2004: utterances
are drawn with replacement, and the rate of each such corpus is taken; its percentiles bound the interval. Two systems
are compared on the same draws, so that what makes an utterance hard for both is taken out.

Percentile intervals are a little narrow. Of 95 % intervals in a simulation, 93 to 94 in 100 held the truth at 50 to
500 utterances, 90 at 20 and 81 at 5: of few utterances, believe an interval only so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95
# Draws that are held at once: 4 million take about 100 MB, however many utterances there are.
DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A rate and its interval.

    Attributes:
        rate: errors over length of all utterances.
        low, high: percentiles of the resampled rates; None where there are fewer than two utterances (or clusters).
    """

    rate: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """How far the rate of system b lies from that of system a.

    Attributes:
        difference: rate of b minus rate of a; below 0, b makes fewer errors.
        low, high: percentiles of the resampled differences; None as in `Interval`.
        share_better: share of the resamples in which b makes fewer errors; None as above.
        share_worse: share in which it makes more; in what is left, both make as many.
    """

    difference: float
    low: float | None
    high: float | None
    share_better: float | None
    share_worse: float | None


def interval(
    errors: np.ndarray,
    lengths: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    clusters: Sequence[str] | None = None,
) -> Interval:
    """Return the micro-averaged rate with its percentile interval.

    Args:
        errors: of each utterance, shape (utterances,).
        lengths: units of each reference, shape (utterances,).
        resamples: corpora that are drawn; one seed and number of utterances draws the same ones.
        confidence: share of the resampled rates that lies in the interval.
        seed: of `numpy.random.default_rng`.
        clusters: speaker of each utterance: speakers are drawn, each with all utterances, where these hang together.

    Raises:
        ValueError: shapes differ, or the references are empty.
    """
    columns = _columns((errors, lengths), clusters)
    rate = float(columns[:, 0].sum() / columns[:, 1].sum())
    if len(columns) < 2:
        return Interval(rate, None, None)
    totals = _resampled_totals(columns, resamples, seed)
    low, high = _percentiles(totals[:, 0] / totals[:, 1], confidence)
    return Interval(rate, low, high)


def paired_difference(
    errors_a: np.ndarray,
    errors_b: np.ndarray,
    lengths: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    clusters: Sequence[str] | None = None,
) -> Difference:
    """Return how system b differs from system a on the same utterances, both resampled alike.

    Args and errors as for `interval`; the share of resamples in which b is better is Bisani and Ney's probability of
    improvement.
    """
    columns = _columns((errors_a, errors_b, lengths), clusters)
    sums = columns.sum(axis=0)
    difference = float((sums[1] - sums[0]) / sums[2])
    if len(columns) < 2:
        return Difference(difference, None, None, None, None)
    totals = _resampled_totals(columns, resamples, seed)
    change = totals[:, 1] - totals[:, 0]
    low, high = _percentiles(change / totals[:, 2], confidence)
    return Difference(difference, low, high, float((change < 0).mean()), float((change > 0).mean()))


def _columns(columns: Sequence[np.ndarray], clusters: Sequence[str] | None) -> np.ndarray:
    """Return what is drawn, one row an utterance or cluster: float64, shape (rows, columns), the lengths last."""
    if len({len(column) for column in (*columns, columns[0] if clusters is None else clusters)}) > 1:
        raise ValueError("errors, lengths and clusters must be of one length")
    table = np.stack(columns, axis=1).astype(np.float64)
    if not table[:, -1].any():
        raise ValueError("an error rate needs a reference that is not empty")
    if clusters is None:
        return table
    _, owner = np.unique(np.asarray(clusters), return_inverse=True)
    return np.stack([np.bincount(owner, weights=column) for column in table.T], axis=1)


def _resampled_totals(columns: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return the sums of each column over `resamples` draws of rows with replacement, shape (resamples, columns).

    Draws without any reference text, which have no rate, are left out.
    """
    rng = np.random.default_rng(seed)
    rows = len(columns)
    at_once = max(1, DRAWS_AT_ONCE // rows)
    totals = []
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn = rng.integers(rows, size=(count, rows))
        # How often each row was drawn, in every resample at once.
        drawn += np.arange(count)[:, None] * rows
        times = np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows)
        totals.append(times.astype(np.float64) @ columns)
    joined = np.concatenate(totals)
    return joined[joined[:, -1] > 0]


def _percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    outside = (1 - confidence) / 2
    low, high = np.quantile(values, [outside, 1 - outside])
    return float(low), float(high)
