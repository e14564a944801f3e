"""The page of an evaluation report: all that its template names, laid out from the figures of every test set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from asr.offline.bootstrap import CONFIDENCE, RESAMPLES
from asr.offline.examples import AUDIO_BYTES, OpenAudio, audio_of, chosen, example
from asr.offline.figures import SEED, formats_told, windows_told
from asr.offline.plots import PANEL, dot_plot, histogram, series
from asr.offline.results import Evaluation
from asr.offline.symptoms import FASTEST_SPEECH, KINDS, SILENCE_DB

# Systems whose rates stand beside each other in a page's width.
SIDE_BY_SIDE = 4
FEW_UTTERANCES, FEW_SPEAKERS = 50, 5
# Of speakers and sources, so many rates in all and at least so many groups.
RATES_SHOWN, GROUPS_SHOWN = 24, 5
CONFUSIONS_SHOWN = 20
NOTES_SHOWN = 10
LONGEST_TEXT = 500

METRIC_ROWS = {
    "cer": ("CER", "without spaces", "글자, 띄어쓰기 제외"),
    "cer_with_spaces": ("CER", "with spaces", "글자, 띄어쓰기 포함"),
    "wer": ("WER", "words between spaces", "어절"),
    "jer": ("JER", "jamo", "자모"),
}
SLICES = {
    "duration": ("Duration", "길이"),
    "rate": ("Speaking rate", "말 속도"),
    "length": ("Length of the reference", "글자 수"),
    "speaker": ("Speaker", "화자"),
    "source": ("Source", "출처"),
}
LISTS = {
    "worst": ("Most errors", "가장 많이 틀린 발화"),
    "improved": ("Most improved", "가장 나아진 발화"),
    "worsened": ("Most worsened", "가장 나빠진 발화"),
    "symptoms": ("With symptoms", "이상 징후가 있는 발화"),
}


def page_of(evaluations: Sequence[Evaluation], figures: Mapping[str, Any], open_audio: OpenAudio) -> dict[str, Any]:
    """Return what the template names.

    Args:
        evaluations: the main set first.
        figures: of these (`asr.offline.figures.all_figures`).
        open_audio: as for `asr.offline.evaluation_report.write_results`.
    """
    focus = focus_of(figures["sets"][0])
    lists = [chosen(each, focus if focus in each.labels else each.labels[-1]) for each in evaluations]
    audio = audio_of(list(zip(evaluations, lists, strict=True)), open_audio)
    return {
        **figures,
        "title": figures["settings"].get("run") or figures["sets"][0]["name"],
        "sets": [_set(*row, focus) for row in zip(evaluations, figures["sets"], strict=True)],
        "examples": [
            {name: [example(each, at, audio) for at in places] for name, places in of_set.items()}
            for each, of_set in zip(evaluations, lists, strict=True)
        ],
        "settings": flat(figures["settings"]),
        "audio_megabytes": AUDIO_BYTES / 1e6,
        "metric_rows": METRIC_ROWS,
        "list_titles": LISTS,
        "symptom_kinds": KINDS,
        "fastest_speech": FASTEST_SPEECH,
        "silence_db": SILENCE_DB,
        "confidence": round(100 * CONFIDENCE),
        "resamples": RESAMPLES,
        "seed": SEED,
        "longest_text": LONGEST_TEXT,
        "panel": PANEL,
    }


def focus_of(figures: Mapping[str, Any]) -> str:
    """Return the system that the report looks at most closely: of those beside the first, the one with the least CER.

    What counts is each one's first window.

    Args:
        figures: of the main set.
    """
    first, *others = figures["systems"]
    candidates = [system for system in others if not system["against_other_window"]] or others or [first]
    return min(candidates, key=lambda system: system["metrics"]["cer"]["rate"])["label"]


def _set(evaluation: Evaluation, figures: dict[str, Any], focus: str) -> dict[str, Any]:
    systems = [{**system, **series(at)} for at, system in enumerate(figures["systems"])]
    seen = next((system for system in systems if system["label"] == focus), systems[-1])
    everyone = {"small": False, "rates": [system["metrics"]["cer"] for system in systems]}
    confused = {kind: rows[:CONFUSIONS_SHOWN] for kind, rows in figures["confusions"].items()}
    return {
        **figures,
        "systems": systems,
        "first": systems[0],
        "focus": seen,
        "many": len(systems) > SIDE_BY_SIDE,
        "verdict": _verdict(systems[0], seen),
        "cautions": list(_cautions(figures)),
        "overview": dot_plot([everyone]),
        "slices": list(_slices(systems)),
        "distributions": _distributions(systems),
        "changes": _changes(systems[1:]),
        "confusions": confused,
        "windows": [system for system in systems if system["against_other_window"]],
        "details": _details(evaluation),
    }


def _verdict(first: dict[str, Any], seen: dict[str, Any]) -> str:
    """Say what the difference between two systems is worth."""
    if not seen["against_first"]:
        return ""
    change = seen["against_first"]["cer"]
    if change["low"] is None:
        return "Of a single utterance, nothing can be said about others."
    if change["low"] <= 0 <= change["high"]:
        return f"{seen['label']} and {first['label']} cannot be told apart: the interval of the change holds 0."
    fewer, below = ("fewer", "below") if change["high"] < 0 else ("more", "above")
    return f"{seen['label']} makes {fewer} errors than {first['label']}: the whole interval lies {below} 0."


def _cautions(figures: dict[str, Any]) -> Iterator[str]:
    """Yield what a reader must know before believing the figures."""
    if figures["utterances"] < FEW_UTTERANCES:
        yield f"Only {figures['utterances']} utterances: the intervals of so few are themselves too narrow."
    if 0 < figures["speakers"] < FEW_SPEAKERS:
        speakers = "one speaker" if figures["speakers"] == 1 else f"{figures['speakers']} speakers"
        yield f"All known voices are those of {speakers}: the intervals do not speak for other voices."
    if figures["empty_references"]:
        yield f"{figures['empty_references']} references are empty: what is written for them counts as insertions."
    windows = windows_told(figures["systems"])
    if windows:
        yield f"The systems heard the same clips in different windows: {windows}."
    formats = formats_told(figures["systems"])
    if formats:
        yield f"The systems were run in different formats: {formats}."
    yield from figures["notes"][:NOTES_SHOWN]
    if len(figures["notes"]) > NOTES_SHOWN:
        yield f"{len(figures['notes']) - NOTES_SHOWN} more notes stand in metrics.json."


# Plots


def _slices(systems: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for by, (title, korean) in SLICES.items():
        rows = [[one for one in system["slices"] if one["by"] == by] for system in systems]
        groups = [{**same[0], "rates": [one["cer"] for one in same]} for same in zip(*rows, strict=True)]
        # A single group says no more than the whole.
        if len(groups) > 1:
            limit = max(GROUPS_SHOWN, RATES_SHOWN // len(systems)) if by in ("speaker", "source") else len(groups)
            plot = dot_plot(groups[:limit])
            yield {"by": by, "title": title, "korean": korean, **plot, "of": len(groups)}


def _distributions(systems: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a histogram of utterance CER a system, on one scale."""
    rows = []
    for system in systems:
        found = system["utterance_cer"]
        percents = [round(100 * edge) for edge in found["edges"]]
        labels = ["no error", *(f"up to {edge} %" for edge in percents[1:]), "more than 100 %"]
        rows.append((system, labels, [found["perfect"], *found["counts"], found["above"]]))
    most = max(max(counts) for _, _, counts in rows)
    ticks = {0.42: "0", 6: "50", 11: "100"}
    return [{"system": system, **histogram(labels, counts, most, ticks)} for system, labels, counts in rows]


def _changes(systems: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a histogram of how far the CER of utterances moved, a system, on one scale."""
    rows = []
    for system in systems:
        found = system["utterance_change"]
        points = [round(100 * edge) for edge in found["edges"]]
        labels = [f"{low} to {high} points" for low, high in pairwise(points)]
        rows.append((system, labels, found["counts"]))
    most = max((max(counts) for _, _, counts in rows), default=0)
    ticks: dict[float, str] = {0: "−100", 5: "−50", 10: "0", 15: "+50", 20: "+100"}
    return [{"system": system, **histogram(labels, counts, most, ticks)} for system, labels, counts in rows]


# What the systems are


def _details(evaluation: Evaluation) -> list[tuple[str, list[Any]]]:
    """Return what each system is: rows of a name and a value a system."""
    columns = [flat({"window": output.window, **output.details}) for output in evaluation.outputs]
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name) for column in columns]) for name in names]


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings side by side, as sets.test.split, without those that say nothing."""
    told: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            told |= {f"{name}.{inner}": deep for inner, deep in flat(value).items()}
        elif value not in (None, "", [], ()):
            told[name] = value
    return told
