"""Character and word error rates as metric modules of `evaluate`, on jiwer; nothing is fetched.

Texts are compared in NFC with single spaces (`clean_text`). The headline CER leaves spaces out: Korean spacing
varies between writers who mean and hear the same. All rates are micro-averages: errors of all utterances over
characters (words) of all references.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import datasets
import evaluate
import jiwer

from asr.shared.text import clean_text

_FEATURES = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})


class _ErrorRate(evaluate.Metric):
    """Common part: one number between 0 and, with many insertions, more than 1."""

    name: str
    unit = "characters"

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"{self.name}: substitutions, deletions and insertions over the reference's {self.unit}",
            citation="https://github.com/jitsi/jiwer",
            features=_FEATURES,
            inputs_description="predictions and references: lists of strings",
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        references = [self._prepared(text) for text in references]
        if not any(references):
            raise ValueError("an error rate needs a reference that is not empty")
        return {self.name: float(self._rate()(references, [self._prepared(text) for text in predictions]))}

    def _prepared(self, text: str) -> str:
        return clean_text(text)

    def _rate(self) -> Callable[[list[str], list[str]], float]:
        return jiwer.cer


class CharacterErrorRate(_ErrorRate):
    """CER without spaces."""

    name = "cer"

    def _prepared(self, text: str) -> str:
        return clean_text(text).replace(" ", "")


class SpacedCharacterErrorRate(_ErrorRate):
    """CER in which a space counts like any character."""

    name = "cer_with_spaces"


class WordErrorRate(_ErrorRate):
    """WER over words between spaces (어절)."""

    name = "wer"
    unit = "words"

    def _rate(self) -> Callable[[list[str], list[str]], float]:
        return jiwer.wer


def error_rates(predictions: list[str], references: list[str]) -> dict[str, float]:
    """Return cer, cer_with_spaces and wer of texts.

    Raises:
        ValueError: no reference holds any text.
    """
    rates: dict[str, float] = {}
    # `evaluate` makes a folder even for what it keeps in memory; the one in HOME may not be writable.
    with tempfile.TemporaryDirectory() as folder:
        for kind in (CharacterErrorRate, SpacedCharacterErrorRate, WordErrorRate):
            metric = kind(keep_in_memory=True, cache_dir=folder)
            rates |= metric.compute(predictions=predictions, references=references)
    return rates
