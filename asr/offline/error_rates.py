"""Error rates of characters, words and jamo, counted by utterance.

Four units: `cer` leaves spaces out and is the headline, because Korean spacing varies between writers who mean and
hear the same; `cer_with_spaces` counts them; `wer` counts words between spaces (어절); `jer` counts jamo, so that 안넝
for 안녕 is one letter of six and not one syllable of two. Each is told raw (NFC and single spaces, `clean_text`) and
normalised (`cer_normalized` and so on; `Normalizer`).

All rates are micro-averages: errors of all utterances over characters (words, jamo) of all references. An utterance
with an empty reference adds its output's characters as insertions and nothing to the length; with an empty output too
it adds nothing. Texts whose references are all empty have no rate. The alignment is rapidfuzz's, and so jiwer's.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from asr.offline.normalizer import Normalizer
from asr.shared.text import clean_text

NORMALIZED = "_normalized"
EDITS = ("substitutions", "deletions", "insertions")


@dataclass(frozen=True)
class Counts:
    """Edits that turn the references into what was written, summed over utterances."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def length(self) -> int:
        """Units of the references."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors over length; more than 1 with many insertions.

        Raises:
            ValueError: the references are empty.
        """
        if not self.length:
            raise ValueError("an error rate needs a reference that is not empty")
        return self.errors / self.length

    def figures(self) -> dict[str, float]:
        """Return the rate and all counts by their names."""
        edits = {name: getattr(self, name) for name in ("hits", *EDITS)}
        return {"rate": self.rate, "errors": self.errors, "length": self.length, **edits}


@dataclass(frozen=True)
class UtteranceCounts:
    """The same by utterance: int64 arrays, shape (utterances,)."""

    hits: np.ndarray
    substitutions: np.ndarray
    deletions: np.ndarray
    insertions: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """Errors of each utterance."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def lengths(self) -> np.ndarray:
        """Units of each reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rates(self) -> np.ndarray:
        """Errors over length of each utterance, float64; NaN where the reference is empty."""
        lengths = self.lengths
        return np.divide(self.errors, lengths, out=np.full(len(lengths), np.nan), where=lengths > 0)

    def total(self) -> Counts:
        """Return the sums over all utterances."""
        return Counts(*(int(part.sum()) for part in (self.hits, self.substitutions, self.deletions, self.insertions)))


@dataclass(frozen=True)
class Scores:
    """All error rates of one system.

    Attributes:
        by_metric: counts of each of `METRICS`, in its order.
    """

    by_metric: dict[str, UtteranceCounts]

    def __getitem__(self, metric: str) -> UtteranceCounts:
        return self.by_metric[metric]

    def figures(self) -> dict[str, dict[str, float]]:
        """Return rate, errors, length, hits, substitutions, deletions and insertions of each metric."""
        return {name: counts.total().figures() for name, counts in self.by_metric.items()}


def score(predictions: Sequence[str], references: Sequence[str], normalizer: Normalizer | None = None) -> Scores:
    """Count the errors of each utterance for every metric.

    Args:
        predictions: what was written, in the order of the references.
        references: what was said.
        normalizer: makes the normal form for the metrics that end in _normalized; by default `Normalizer()`.

    Raises:
        ValueError: not as many predictions as references, or no reference holds any text, or none is left in normal
            form.
    """
    by_metric = {}
    for suffix, prepare in (("", clean_text), (NORMALIZED, normalizer or Normalizer())):
        written, said = [prepare(text) for text in predictions], [prepare(text) for text in references]
        for unit, split in UNITS.items():
            by_metric[unit + suffix] = count_edits([split(text) for text in written], [split(text) for text in said])
            check_length(unit + suffix, by_metric[unit + suffix])
    return Scores(by_metric)


def count_edits(predictions: Sequence[str | list[str]], references: Sequence[str | list[str]]) -> UtteranceCounts:
    """Align each prediction with its reference, as sequences of characters or words, and count.

    Raises:
        ValueError: not as many predictions as references.
    """
    edits = np.zeros((len(references), len(EDITS)), dtype=np.int64)
    for row, said, written in zip(edits, references, predictions, strict=True):
        tags = [operation.tag for operation in Levenshtein.editops(said, written)]
        row[:] = tags.count("replace"), tags.count("delete"), tags.count("insert")
    substitutions, deletions, insertions = edits.T
    lengths = np.fromiter(map(len, references), dtype=np.int64, count=len(references))
    return UtteranceCounts(lengths - substitutions - deletions, substitutions, deletions, insertions)


def without_spaces(text: str) -> str:
    """Return `text` without its spaces."""
    return text.replace(" ", "")


def to_jamo(text: str) -> str:
    """Return `text` without spaces, its Hangul syllables as jamo: 한 글 to ㅎㅏㄴㄱㅡㄹ.

    An initial and a final consonant are two different jamo (Unicode's conjoining ones), a cluster such as ㄺ is one.
    Every other character stays as it is.
    """
    return without_spaces(text).translate(_jamo_of_syllables())


@cache
def _jamo_of_syllables() -> dict[int, str]:
    return {code: unicodedata.normalize("NFD", chr(code)) for code in range(ord("가"), ord("힣") + 1)}


def check_length(metric: str, counts: UtteranceCounts) -> None:
    """Raise a ValueError where no reference holds any text."""
    if not counts.lengths.any():
        raise ValueError(f"{metric}: an error rate needs a reference that is not empty")


UNITS: dict[str, Callable[[str], Any]] = {
    "cer": without_spaces,
    "cer_with_spaces": str,
    "wer": str.split,
    "jer": to_jamo,
}
METRICS = tuple(unit + suffix for suffix in ("", NORMALIZED) for unit in UNITS)
