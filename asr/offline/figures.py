"""Figures: everything that is counted of an evaluation, as metrics.json has it and the report and the table tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from asr.offline.alignment import confusions
from asr.offline.bootstrap import CONFIDENCE, RESAMPLES, interval, paired_difference
from asr.offline.error_rates import METRICS, Scores, UtteranceCounts
from asr.offline.normalizer import RAW, Normalizer
from asr.offline.results import Evaluation
from asr.offline.slices import slice_rates
from asr.offline.symptoms import count_symptoms
from utils import UserError

SEED = 0
HEADLINE = ("cer", "cer_with_spaces", "wer")
# Utterances without any error have a bin of their own, and so have those of more than 100 %.
CER_EDGES = tuple(tenth / 10 for tenth in range(11))
CHANGE_EDGES = tuple(tenth / 10 for tenth in range(-10, 11))
MOST_CONFUSED = 50


def all_figures(evaluations: Sequence[Evaluation], settings: dict[str, Any]) -> dict[str, Any]:
    """Return what metrics.json holds: the headline of the first set, then every set in full, then how it was made.

    What a clock measured stands under `speed` alone: all else is the same whenever the same texts are judged.

    Args:
        evaluations: the main set first.
        settings: what was asked for; kept as it is.
    """
    main = evaluations[0]
    rates = {
        output.system: {metric: scores[metric].total().rate for metric in HEADLINE}
        for output, scores in reversed(list(zip(main.outputs, _scores(main), strict=True)))
    }
    quantization = settings.get("quantization", main.outputs[-1].details.get("quantization"))
    return {
        **{name: rates[name] for name in ("base", "tuned") if name in rates},
        "utterances": len(main.utterances),
        "hours": main.utterances.hours,
        "quantization": quantization,
        "sets": [evaluation.figures for evaluation in evaluations],
        "normalizer": {"raw": RAW, "normalized": Normalizer().describe()},
        "intervals": {"confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED, "drawn": "utterances"},
        "settings": settings,
        "speed": [{"name": each.utterances.name, "systems": speeds(each)} for each in evaluations],
    }


def set_figures(evaluation: Evaluation) -> dict[str, Any]:
    """Return the figures of one test set, of every system.

    Raises:
        UserError: no reference holds any text.
    """
    said = evaluation.utterances
    first = _scores(evaluation)[0]
    return {
        "name": said.name,
        "utterances": len(said),
        "hours": said.hours,
        "speakers": len({speaker for speaker in said.speakers if speaker}),
        "empty_references": int((first["cer"].lengths == 0).sum()),
        "notes": list(evaluation.notes),
        "systems": [_system(evaluation, at) for at in range(len(evaluation.outputs))],
        "confusions": _confusions(evaluation),
    }


def speeds(evaluation: Evaluation) -> dict[str, dict[str, float | None]]:
    """Return of each output how long the audio is, how long decoding took, and how many times real time that is."""
    audio_s = sum(evaluation.utterances.durations_s)
    return {
        label: {
            "audio_s": audio_s,
            "decode_s": output.decode_s,
            "times_real_time": audio_s / output.decode_s if output.decode_s else None,
        }
        for label, output in zip(evaluation.labels, evaluation.outputs, strict=True)
    }


def windows_told(systems: Sequence[dict[str, Any]]) -> str:
    """Return which system has which window, where these differ; what counts is each one's first."""
    windows: dict[str, str] = {}
    for system in systems:
        windows.setdefault(system["system"], system["window"])
    return _if_different(windows)


def formats_told(systems: Sequence[dict[str, Any]]) -> str:
    """Return which system ran in which number formats, where these differ."""
    formats = {}
    for system in systems:
        found = (system["details"].get(name) for name in ("quantization", "compute_type"))
        formats[system["system"]] = " ".join(each for each in found if each and each != "none")
    return _if_different(formats)


def _if_different(told: dict[str, str]) -> str:
    different = len(set(told.values())) > 1
    return ", ".join(f"{name} {value}" for name, value in told.items()) if different else ""


def _scores(evaluation: Evaluation) -> list[Scores]:
    try:
        return evaluation.scores
    except ValueError as error:
        raise UserError(f"test set {evaluation.utterances.name}: {error}; give one with texts") from None


def _system(evaluation: Evaluation, at: int) -> dict[str, Any]:
    """Return the figures of output number `at`."""
    output, scores = evaluation.outputs[at], evaluation.scores[at]
    return {
        "label": evaluation.labels[at],
        "system": output.system,
        "window": output.window,
        "details": output.details,
        "metrics": {metric: _rate(scores[metric]) for metric in METRICS},
        "against_first": _change(evaluation.scores[0], scores) if at else None,
        "against_other_window": _change_of_window(evaluation, at),
        "utterance_cer": _distribution(scores["cer"].rates),
        "utterance_change": _changes(evaluation.scores[0]["cer"], scores["cer"]) if at else None,
        "slices": _slices(evaluation, scores["cer"]),
        "symptoms": count_symptoms(evaluation.symptoms[at]),
    }


def _rate(counts: UtteranceCounts) -> dict[str, Any]:
    found = interval(counts.errors, counts.lengths, seed=SEED)
    figures = counts.total().figures()
    return {"rate": figures.pop("rate"), "low": found.low, "high": found.high, **figures}


def _change(before: Scores, after: Scores) -> dict[str, Any]:
    """Return how far each rate of `after` lies from that of `before`, on the same utterances."""
    return {
        metric: asdict(paired_difference(before[metric].errors, after[metric].errors, counts.lengths, seed=SEED))
        for metric, counts in after.by_metric.items()
    }


def _change_of_window(evaluation: Evaluation, at: int) -> dict[str, Any] | None:
    """Return the change from the same system's first output, where that had the other window."""
    outputs = evaluation.outputs
    own = next(i for i, output in enumerate(outputs) if output.system == outputs[at].system)
    if own == at:
        return None
    return {"window": outputs[own].window, "metrics": _change(evaluation.scores[own], evaluation.scores[at])}


def _slices(evaluation: Evaluation, counts: UtteranceCounts) -> list[dict[str, Any]]:
    said = evaluation.utterances
    found = slice_rates(
        counts.errors,
        counts.lengths,
        references=said.references,
        durations_s=said.durations_s,
        speakers=said.speakers,
        sources=said.sources,
        seed=SEED,
    )
    return [asdict(one) for one in found]


# Distributions over utterances


def _distribution(rates: np.ndarray) -> dict[str, Any]:
    """Return how many utterances have no error, and how many have a CER above each edge and up to the next."""
    known = rates[~np.isnan(rates)]
    above = known[known > CER_EDGES[-1]]
    return {
        "edges": list(CER_EDGES),
        "perfect": int((known == 0).sum()),
        "counts": _binned(known[(known > 0) & (known <= CER_EDGES[-1])], CER_EDGES),
        "above": len(above),
        "median": float(np.median(known)) if len(known) else None,
    }


def _changes(before: UtteranceCounts, after: UtteranceCounts) -> dict[str, Any]:
    """Return how many utterances got better or worse, and by how much; changes beyond 1 fall into the outer bins."""
    change = (after.rates - before.rates)[before.lengths > 0]
    down = np.clip(-change[change < 0], 0, 1)
    up = np.clip(change[change > 0], 0, 1)
    steps = [edge for edge in CHANGE_EDGES if edge >= 0]
    return {
        "edges": list(CHANGE_EDGES),
        "counts": [*reversed(_binned(down, steps)), *_binned(up, steps)],
        "better": len(down),
        "same": int((change == 0).sum()),
        "worse": len(up),
    }


def _binned(values: np.ndarray, edges: Sequence[float]) -> list[int]:
    """Return how many values lie above each edge and up to the next one."""
    places = np.searchsorted(edges, values, "left") - 1
    return np.bincount(places, minlength=len(edges) - 1).tolist()


# What was taken for what


def _confusions(evaluation: Evaluation) -> dict[str, list[dict[str, Any]]]:
    """Return the most frequent confusions in normal form, all systems together, with the count of each system."""
    normalizer = Normalizer()
    found = [confusions(output.texts, evaluation.utterances.references, normalizer) for output in evaluation.outputs]
    told = {}
    for kind, names in {
        "substituted": ("reference", "hypothesis"),
        "deleted": ("reference",),
        "inserted": ("hypothesis",),
    }.items():
        counts = [{tuple(row[:-1]): row[-1] for row in getattr(one, kind)} for one in found]
        every = {key: [count.get(key, 0) for count in counts] for key in {key for count in counts for key in count}}
        ranked = sorted(every.items(), key=lambda item: (-sum(item[1]), item[0]))[:MOST_CONFUSED]
        told[kind] = [{**dict(zip(names, key, strict=True)), "counts": row} for key, row in ranked]
    return told
