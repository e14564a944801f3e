"""The summary of an evaluation as a terminal shows it: rates, intervals and changes, in at most 100 columns."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from asr.offline.figures import formats_told, speeds, windows_told
from asr.offline.results import Evaluation

COLUMNS = {"cer": "CER", "cer_with_spaces": "CER with spaces", "wer": "WER", "cer_normalized": "CER normalised"}
WIDTH, NAME_WIDTH, CELL_WIDTH = 100, 24, 19
NOTES_SHOWN = 3


def summary_lines(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the lines that tell every set: a table with 95 % intervals and paired changes, symptoms and speed.

    Of several sets, the change of CER on each stands together at the end: what was learnt beside what was forgotten.
    """
    blocks = [[*_set_lines(evaluation), ""] for evaluation in evaluations]
    if len(evaluations) > 1:
        blocks.append(list(_changes_by_set(evaluations)))
    lines = [line.rstrip() for block in blocks for line in block]
    return lines if lines[-1] else lines[:-1]


def spoken(hours: float) -> str:
    """Return the length of all audio, in the unit that suits it."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _set_lines(evaluation: Evaluation) -> Iterator[str]:
    figures = evaluation.figures
    counted = f"{figures['utterances']:,} utterances, {spoken(figures['hours'])}"
    yield from _wrapped(f"{figures['name']}: {counted}; error rates with 95 % intervals")
    yield _row("", COLUMNS.values())
    for system in figures["systems"]:
        yield from _system_rows(system, figures["systems"][0]["label"])
    told = [f"{system['label']} {_symptoms(system['symptoms'])}" for system in figures["systems"]]
    yield from _wrapped(f"symptoms: {'; '.join(told)}")
    told = [f"{label} {_times(speed['times_real_time'])}" for label, speed in speeds(evaluation).items()]
    yield from _wrapped(f"speed, times real time: {', '.join(told)}")
    for what, different in (("windows", windows_told), ("formats", formats_told)):
        if told_apart := different(figures["systems"]):
            yield from _wrapped(f"compared in different {what}: {told_apart}")
    for note in figures["notes"][:NOTES_SHOWN]:
        yield from _wrapped(f"note: {note}")
    if len(figures["notes"]) > NOTES_SHOWN:
        yield f"note: {len(figures['notes']) - NOTES_SHOWN:,} more stand in metrics.json"


def _system_rows(system: dict[str, Any], first: str) -> Iterator[str]:
    rates = [system["metrics"][metric] for metric in COLUMNS]
    yield _row(system["label"], [f"{rate['rate']:.4f}" for rate in rates])
    yield _row("", [_span(rate, ".4f") for rate in rates])
    if system["against_first"]:
        changes = [system["against_first"][metric] for metric in COLUMNS]
        yield _row(f"  less {first}", [f"{change['difference']:+.4f}" for change in changes])
        yield _row("", [_span(change, "+.4f") for change in changes])


def _changes_by_set(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """Yield a table of the changes of CER, one row a system and set."""
    main = evaluations[0].figures["systems"]
    if all(system["system"] == main[0]["system"] for system in main):
        return
    yield f"learnt and forgotten: CER less that of {main[0]['label']}"
    # The first system with its other window has learnt nothing.
    for label in [system["label"] for system in main if system["system"] != main[0]["system"]]:
        for evaluation in evaluations:
            for system in evaluation.figures["systems"][1:]:
                if system["label"] == label:
                    change = system["against_first"]["cer"]
                    cells = (f"{change['difference']:+.4f}", _span(change, "+.4f"))
                    yield _row(label, cells) + "  " + evaluation.utterances.name


def _row(name: str, cells: Sequence[str] | Any) -> str:
    return _padded(name, NAME_WIDTH) + "".join(f"{cell:>{CELL_WIDTH}}" for cell in cells)


def _padded(name: str, width: int) -> str:
    """Return `name` in so many columns of a terminal, where Hangul takes two a syllable; a longer one is cut."""
    taken, shown = 0, ""
    for char in name:
        taken += 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if taken > width:
            return _padded(shown[:-2] + "…", width)
        shown += char
    return shown + " " * (width - taken)


def _span(found: dict[str, Any], form: str) -> str:
    return "–" if found["low"] is None else f"{found['low']:{form}} to {found['high']:{form}}"


def _symptoms(counts: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items() if count) or "none"


def _times(times: float | None) -> str:
    if times is None:
        return "–"
    return f"{times:.3g}" if times < 100 else f"{times:,.0f}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
