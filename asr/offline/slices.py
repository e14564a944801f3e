"""Slices: the error rate by duration, speaking rate, length, speaker and source, each with its interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from asr.offline.bootstrap import RESAMPLES, Interval, interval
from asr.offline.error_rates import without_spaces
from asr.shared.text import clean_text, count_syllables

# Intervals of fewer utterances are too narrow (see `asr.offline.bootstrap`); of fewer than 5 they say nothing.
FEW = 20
FEWEST_FOR_INTERVAL = 5
UNKNOWN = "unknown"
EDGES: dict[str, tuple[str, tuple[float, ...]]] = {
    "duration": ("s", (2, 4, 6, 10, 15, 20)),
    "rate": ("syllables/s", (2, 3, 4, 5, 6, 8)),
    "length": ("characters", (6, 11, 21, 41, 81)),
}


@dataclass(frozen=True)
class Slice:
    """The utterances that have one thing in common.

    Attributes:
        by: duration, rate, length, speaker or source.
        group: which of them, as "2 to 4 s" or a speaker's name.
        utterances: how many there are.
        hours: of audio.
        cer: rate and interval; None where the references are empty, without an interval where there are fewer than
            `FEWEST_FOR_INTERVAL` utterances.
        small: fewer than `FEW` utterances: the rate hangs on a handful of them.
    """

    by: str
    group: str
    utterances: int
    hours: float
    cer: Interval | None
    small: bool


def slice_rates(
    errors: np.ndarray,
    lengths: np.ndarray,
    *,
    references: Sequence[str],
    durations_s: Sequence[float],
    speakers: Sequence[str | None] | None = None,
    sources: Sequence[str | None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Slice]:
    """Return the slices of one system: durations, rates and lengths from low to high, then speakers and sources.

    Args:
        errors, lengths: by utterance, of the metric that is to be told (`Scores`), shape (utterances,).
        references: what was said; gives length (characters without spaces) and speaking rate (syllables a second).
        durations_s: of the audio, in seconds.
        speakers, sources: names; "" and None are unknown, and a list of these alone gives no slice. The largest
            group comes first.
        resamples, seed: as for `interval`.

    Raises:
        ValueError: the arguments are not of one length.
    """
    durations = np.asarray(durations_s, dtype=np.float64)
    syllables = np.array([count_syllables(text) for text in references], dtype=np.float64)
    rates = np.divide(syllables, durations, out=np.full(len(durations), np.nan), where=durations > 0)
    characters = np.array([len(without_spaces(clean_text(text))) for text in references])
    columns: dict[str, Sequence[str | None] | None] = {
        "duration": binned("duration", durations),
        "rate": binned("rate", rates),
        "length": binned("length", characters),
        "speaker": speakers,
        "source": sources,
    }
    found = []
    for by, labels in columns.items():
        if labels is None or not any(labels):
            continue
        for group, members in _groups(by, labels, len(errors)):
            rate = _rate(errors[members], lengths[members], resamples, seed)
            hours = float(durations[members].sum()) / 3600
            found.append(Slice(by, group, len(members), hours, rate, len(members) < FEW))
    return found


def binned(by: str, values: np.ndarray) -> list[str]:
    """Return the group of `EDGES` that each value falls into, its lower edge included; NaN is unknown."""
    names = _bin_names(by)
    places = np.searchsorted(EDGES[by][1], values, "right")
    return [UNKNOWN if np.isnan(value) else names[place] for value, place in zip(values, places, strict=True)]


def _bin_names(by: str) -> list[str]:
    unit, edges = EDGES[by]
    # Characters are whole: 6 to 10, not 6 to 11.
    last = 1 if by == "length" else 0
    between = [f"{low:g} to {high - last:g} {unit}" for low, high in pairwise(edges)]
    return [f"under {edges[0]:g} {unit}", *between, f"{edges[-1]:g} {unit} and more"]


def _groups(by: str, labels: Sequence[str | None], utterances: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each group with the indices of its utterances; none is empty, and what is unknown comes last."""
    if len(labels) != utterances:
        raise ValueError(f"{by}: {len(labels)} values for {utterances} utterances")
    members: dict[str, list[int]] = {name: [] for name in (_bin_names(by) if by in EDGES else ())}
    for at, label in enumerate(labels):
        members.setdefault(label or UNKNOWN, []).append(at)
    found = [(group, np.array(indices)) for group, indices in members.items() if indices]
    if by not in EDGES:
        found.sort(key=lambda item: (-len(item[1]), item[0]))
    yield from sorted(found, key=lambda item: item[0] == UNKNOWN)


def _rate(errors: np.ndarray, lengths: np.ndarray, resamples: int, seed: int) -> Interval | None:
    if not lengths.any():
        return None
    if len(errors) < FEWEST_FOR_INTERVAL:
        return Interval(float(errors.sum() / lengths.sum()), None, None)
    return interval(errors, lengths, resamples=resamples, seed=seed)
