"""The report of a preparation: what there is, what was dropped and why, and whether the splits can be trusted."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

SPLITS = {"train": "학습", "validation": "검증", "test": "테스트"}
HISTOGRAMS = {
    "duration_s": ("Clip length", "클립 길이", "seconds", "s"),
    "syllables_per_second": ("Speaking rate", "말 속도", "syllables per second", "syll./s"),
}
NOTHING: dict[str, Any] = {
    **{"made": "", "rows_read": 0, "rows_kept": 0, "rows_dropped": 0},
    **{"reasons": {}, "sources": {}, "examples": {}, "settings": {}},
    "splits": {name: dict.fromkeys(("clips", "hours", "speakers", "sentences", "characters"), 0) for name in SPLITS},
    "shared": {"speakers": 0, "sentences": 0},
    **{name: {"edges": [], "mean": None, "median": None, "p95": None} for name in HISTOGRAMS},
    "characters": {"distinct": 0, "kinds": {}, "most": [], "rarest": [], "unseen": []},
}
FEW_CLIPS = 30
LONGEST_TEXT = 400
# Control characters, and halves of surrogate pairs, which UTF-8 cannot write.
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

# What a split without clips, or with few, means for the work that follows.
EMPTY_MEANS = {
    "train": "There is nothing to train on.",
    "validation": "Training cannot tell which weights are the best, and keeps the last.",
    "test": "The tuned model cannot be measured on speech that had no part in its making.",
}
FEW_MEANS = {
    "train": "That is hardly enough to learn from.",
    "validation": "Which weights are kept is partly chance.",
    "test": "The error rate will hang on a handful of words: small differences mean nothing.",
}
SHARED_MEANS = {
    "speaker": "The model knows these voices: for new ones, expect a higher error rate.",
    "sentence": "The model has seen these answers: for new sentences, expect a higher error rate.",
}

# A histogram in the units of its own drawing; the page scales it to the column it stands in.
CHART = {"width": 280, "height": 158, "top": 20, "right": 274, "bottom": 120}


def report_html(figures: Mapping[str, Any]) -> str:
    """Return the report as one HTML page that asks for nothing outside itself and needs no script.

    Args:
        figures: what `asr.online.statistics` counted; whatever is missing in it is shown as none.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_presentable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(hours=_hours, counted=_counted, glyph=_glyph, code_points=_code_points)
    return environment.get_template("report.html.j2").render(_page(_laid_over(NOTHING, figures)))


def _laid_over(nothing: dict[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures, with what stands for none in the place of what is missing, in any depth."""
    return nothing | {
        name: _laid_over(nothing.get(name, {}), value) if isinstance(value, dict) else value
        for name, value in figures.items()
    }


def _page(figures: dict[str, Any]) -> dict[str, Any]:
    """Return what the template names."""
    splits, characters = figures["splits"], figures["characters"]
    written = sum(characters["kinds"].values())
    rows = {"kept": figures["rows_kept"], "dropped": figures["rows_dropped"]}
    # In the order of the reasons, the most frequent first.
    examples = {reason: figures["examples"].get(reason, []) for reason in figures["reasons"]} | figures["examples"]
    return {
        **figures,
        "korean": SPLITS,
        "hours": math.fsum(split["hours"] for split in splits.values()),
        "warnings": _warnings(figures),
        "assurances": _assurances(figures),
        "kept_and_dropped": _stack(rows),
        "clips_of_splits": _stack({name: split["clips"] for name, split in splits.items()}),
        "reason_bars": _bars(figures["reasons"].items(), figures["rows_dropped"]),
        "kind_bars": _bars(characters["kinds"].items(), written),
        "character_bars": _bars(characters["most"], written),
        "examples": {reason: rows for reason, rows in examples.items() if rows},
        "histograms": [_histogram(figures[name], *described) for name, described in HISTOGRAMS.items()],
        "settings": {name: _setting(value) for name, value in figures["settings"].items()},
        "chart": CHART,
    }


# Whether the splits can be trusted


def _warnings(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is wrong with the data, each with what it means."""
    found = []
    read, kept, dropped = (figures[f"rows_{name}"] for name in ("read", "kept", "dropped"))
    if read != kept + dropped:
        found.append(("Rows read are not rows kept and dropped.", "This is a fault of the suite: please report it."))
    for name, split in figures["splits"].items():
        if not split["clips"]:
            found.append((f"The {name} split is empty.", EMPTY_MEANS[name]))
        elif split["clips"] < FEW_CLIPS:
            found.append((f"The {name} split has only {_counted(split['clips'], 'clip')}.", FEW_MEANS[name]))
    if not _speakers_at_least(figures):
        found.append(("No speaker is known.", "A voice of train may also be in validation or test."))
    elif _speakers_at_least(figures) < 2:
        found.append(("No split has more than one known speaker.", "Results say little about voices not heard yet."))
    for noun, meaning in SHARED_MEANS.items():
        count = figures["shared"][f"{noun}s"]
        if count:
            verb = "is" if count == 1 else "are"
            found.append((f"{_counted(count, noun)} of train {verb} also in validation or test.", meaning))
    return found


def _assurances(figures: dict[str, Any]) -> list[str]:
    """Return what was looked at and is well. Nothing is well that could not be looked at."""
    clips = {name: split["clips"] for name, split in figures["splits"].items()}
    apart = clips["train"] and (clips["validation"] or clips["test"])
    well = []
    if all(count >= FEW_CLIPS for count in clips.values()):
        well.append(f"Each split has at least {FEW_CLIPS} clips.")
    if apart and _speakers_at_least(figures) >= 2 and not figures["shared"]["speakers"]:
        well.append("No known speaker of train is in validation or test.")
    if apart and not figures["shared"]["sentences"]:
        well.append("No sentence of train is in validation or test.")
    return well


def _speakers_at_least(figures: dict[str, Any]) -> int:
    """Return how many speakers there are at least: those of validation and of test may be the same."""
    train, *others = (split["speakers"] for split in figures["splits"].values())
    shared = figures["shared"]["speakers"]
    return train + max(*others, shared) - shared


# Plots: where each bar stands; the template draws them


def _bars(counts: Iterable[Sequence[Any]], total: int) -> list[dict[str, Any]]:
    """Return horizontal bars of pairs of label and count, their widths in per cent of the longest."""
    pairs = list(counts)
    most = max((count for _, count in pairs), default=0) or 1
    return [
        {"label": label, "count": count, "width": round(100 * count / most, 3), "share": _share(count, total)}
        for label, count in pairs
    ]


def _stack(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the parts of one bar, their widths and offsets in per cent of it."""
    total, before, parts = sum(counts.values()), 0, []
    for label, count in counts.items():
        part = {"label": label, "count": count, "share": _share(count, total)}
        parts.append(part | {"x": round(100 * before / (total or 1), 3), "width": round(100 * count / (total or 1), 3)})
        before += count
    return parts


def _histogram(figures: dict[str, Any], title: str, korean: str, unit: str, short_unit: str) -> dict[str, Any]:
    """Return one histogram a split, all on the same horizontal axis, each as high as its own fullest bin."""
    described = {"title": title, "korean": korean, "unit": unit, "short_unit": short_unit}
    summary = {"mean": figures["mean"], "median": figures["median"], "95th percentile": figures["p95"]}
    panels = {name: _panel(figures["edges"], figures.get(name, []), figures["median"]) for name in SPLITS}
    return {**described, "summary": summary, "panels": panels}


def _panel(edges: Sequence[float], counts: Sequence[int], median: float | None) -> dict[str, Any]:
    """Lay out the bars and axes of one histogram, in the units of `CHART`; heights are proportional to counts."""
    most, total = max(counts, default=0), sum(counts)
    levels = [level for level in _ticks(0, most, 5) if level == int(level)]
    left = 12 + 7 * max((len(_number(int(level))) for level in levels), default=1)
    low, high = (edges[0], edges[-1]) if len(edges) > 1 else (0, 1)
    across = (CHART["right"] - left) / (high - low)
    up = (CHART["bottom"] - CHART["top"]) / (most or 1)

    def bar(start: float, end: float, count: int) -> dict[str, Any]:
        place = {"x": round(left + across * (start - low), 2), "width": round(across * (end - start) * 0.86, 2)}
        place |= {"y": round(CHART["bottom"] - up * count, 2), "height": round(up * count, 2)}
        return place | {"slot": round(across * (end - start), 2), "start": start, "end": end, "count": count}

    return {
        "bars": [
            bar(start, end, count) | {"share": _share(count, total)}
            for (start, end), count in zip(pairwise(edges), counts, strict=False)
        ],
        "left": left,
        "total": total,
        "levels": [(int(level), round(CHART["bottom"] - up * level, 2)) for level in levels],
        "ticks": [(tick, round(left + across * (tick - low), 2)) for tick in _ticks(low, high, 6)],
        "median": round(left + across * (median - low), 2) if total and median and low <= median <= high else None,
    }


def _ticks(low: float, high: float, steps: int) -> list[float]:
    """Return round values from low to high, 1, 2 or 5 times a power of ten apart, in at most so many steps."""
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / steps))
    step = power * next((factor for factor in (1, 2, 5) if factor * power * steps >= high - low), 10)
    return [round(n * step, 9) for n in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


# How values are written


def _presentable(value: object) -> object:
    """Write numbers with separators, and texts without what a page cannot hold; very long ones are cut."""
    if type(value) is str:
        shown = UNFIT.sub("\ufffd", value[:LONGEST_TEXT])
        return shown if len(value) <= LONGEST_TEXT else f"{shown}… ({len(value):,} characters)"
    return _number(value) if value is None or isinstance(value, (int, float, Integral)) else value


def _number(value: Any) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, Integral):
        return f"{value:,}"
    return f"{value:,.2f}".rstrip("0").rstrip(".") if abs(value) >= 1 else f"{value:.4f}".rstrip("0").rstrip(".")


def _setting(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value)) or "–"
    if value is None or value == "":
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours >= 0.01 or not hours else f"{hours:.4f}"


def _counted(count: int, noun: str) -> str:
    return f"{_number(count)} {noun if count == 1 else noun + 's'}"


def _share(part: float, whole: float) -> str:
    if not whole:
        return "–"
    return "< 0.1 %" if 0 < part / whole < 0.0005 else f"{100 * part / whole:.1f} %"


def _glyph(char: str) -> str:
    """Return a character so that it can be seen: spaces and invisible ones by name, marks on a dotted circle."""
    if char == " ":
        return "space"
    category = unicodedata.category(char[0]) if char else "Z"
    return _code_points(char) if category[0] in "ZC" else f"◌{char}" if category[0] == "M" else char


def _code_points(char: str) -> str:
    return " ".join(f"U+{ord(part):04X}" for part in char)
