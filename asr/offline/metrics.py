"""Metrics: the error rates as modules of `evaluate`, which need no network."""

from __future__ import annotations

import tempfile
from typing import Any

import datasets
import evaluate

from asr.offline.error_rates import EDITS, METRICS, NORMALIZED, UNITS, check_length, count_edits
from asr.offline.normalizer import Normalizer
from asr.shared.text import clean_text


class ErrorRate(evaluate.Metric):
    """Any of `METRICS` as a module of `evaluate`, which takes its name: `ErrorRate("cer_normalized")`.

    `compute(predictions=…, references=…)` returns the rate under that name, and hits, substitutions, deletions and
    insertions under `cer_normalized_hits` and so on. `evaluate.load` with this file's path gives the same one.

    Raises:
        ValueError: there is no such metric; in `compute`, no reference holds any text.
    """

    def __init__(self, config_name: str | None = None, normalizer: Normalizer | None = None, **options: Any) -> None:
        config_name = config_name or "cer"
        if config_name not in METRICS:
            raise ValueError(f"there is no metric {config_name}: choose among {' '.join(METRICS)}")
        self.prepare = (normalizer or Normalizer()) if config_name.endswith(NORMALIZED) else clean_text
        self.split = UNITS[config_name.removesuffix(NORMALIZED)]
        super().__init__(config_name=config_name, **options)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="https://github.com/rapidfuzz/RapidFuzz",
            features=datasets.Features({"predictions": text, "references": text}),
            inputs_description="predictions and references: lists of strings",
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        written, said = ([self.split(self.prepare(text)) for text in texts] for texts in (predictions, references))
        counts = count_edits(written, said)
        check_length(self.config_name, counts)
        total = counts.total()
        told = {f"{self.config_name}_{name}": getattr(total, name) for name in ("hits", *EDITS)}
        return {self.config_name: total.rate, **told}


def error_rates(predictions: list[str], references: list[str]) -> dict[str, float]:
    """Return cer, cer_with_spaces and wer of texts, raw.

    Raises:
        ValueError: no reference holds any text.
    """
    rates: dict[str, float] = {}
    # `evaluate` makes a folder even for what it keeps in memory; the one in HOME may not be writable.
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cer", "cer_with_spaces", "wer"):
            metric = ErrorRate(name, keep_in_memory=True, cache_dir=folder)
            rates[name] = metric.compute(predictions=predictions, references=references)[name]
    return rates
