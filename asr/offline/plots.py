"""Plots: where every bar, dot and tick of the evaluation report stands; its template draws them as inline SVG.

Rates with intervals are drawn in per cent of the width that the page has, histograms in units of their own
(`PANEL`), which the page scales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# A system is told by its shape as well as by its colour.
SHAPES = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",
    "M-4.5,-4.5h9v9h-9z",
    "M0,-6.2L6.2,0L0,6.2L-6.2,0z",
    "M0,-6L5.6,4.4H-5.6z",
    "M0,6L5.6,-4.4H-5.6z",
    "M-6,-2h4v-4h4v4h4v4h-4v4h-4v-4h-4z",
)
PANEL = {"width": 300, "height": 150, "left": 44, "right": 296, "top": 16, "bottom": 112}
STEPS = 5


def series(number: int) -> dict[str, Any]:
    """Return what system number `number` is drawn with: its colour's number and its shape."""
    return {"colour": number % len(SHAPES), "shape": SHAPES[number % len(SHAPES)]}


def dot_plot(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return rates with intervals of several systems, group by group, on one axis that begins at 0.

    Args:
        groups: each with `rates`, one a system: rate, low and high, or None; `small` ones do not stretch the axis.

    Returns:
        ticks, and groups with `marks` in place of the rates; x, low and high in per cent of the axis. An interval
        that leaves the axis has `cut`.
    """
    limit = axis_end(_reach(groups))
    return {
        "ticks": [{"value": tick, "x": _per_cent(tick, limit)} for tick in ticks(limit)],
        "groups": [{**group, "marks": _marks(group["rates"], limit)} for group in groups],
    }


def histogram(labels: Sequence[str], counts: Sequence[int], most: int, named: Mapping[float, str]) -> dict[str, Any]:
    """Return the bars and axes of one histogram in the units of `PANEL`.

    Args:
        labels: what each bar holds.
        most: count that reaches the top, so that several histograms can share a scale.
        named: what is written under the axis, by its place in bars from the left.
    """
    slot = (PANEL["right"] - PANEL["left"]) / max(1, len(counts))
    top = axis_end(max(1, most))
    up = (PANEL["bottom"] - PANEL["top"]) / top
    bars = [
        {
            "label": label,
            "count": count,
            "x": round(PANEL["left"] + at * slot, 2),
            "slot": round(slot, 2),
            "width": round(slot * 0.84, 2),
            "y": round(PANEL["bottom"] - up * count, 2),
            "height": round(up * count, 2),
        }
        for at, (label, count) in enumerate(zip(labels, counts, strict=True))
    ]
    levels = [level for level in ticks(top) if level == int(level)]
    return {
        "bars": bars,
        "names": [(name, round(PANEL["left"] + at * slot, 2)) for at, name in named.items()],
        "levels": [(int(level), round(PANEL["bottom"] - up * level, 2)) for level in levels],
    }


def ticks(limit: float) -> list[float]:
    """Return round values from 0 to `limit`, 1, 2 or 5 times a power of ten apart, in at most `STEPS` steps."""
    step = _step(limit)
    return [round(n * step, 9) for n in range(math.floor(limit / step + 1e-9) + 1)]


def axis_end(value: float) -> float:
    """Return the round value at or above `value` where an axis ends."""
    step = _step(value)
    return round(math.ceil(value / step - 1e-9) * step, 9)


def _step(limit: float) -> float:
    power = 10.0 ** math.floor(math.log10(limit / STEPS))
    return power * next((factor for factor in (1, 2, 5) if factor * power * STEPS >= limit * (1 - 1e-9)), 10)


def _reach(groups: Sequence[dict[str, Any]]) -> float:
    rates = [(rate, group["small"]) for group in groups for rate in group["rates"] if rate]
    reach = [rate["rate"] * 1.1 if small else rate["high"] or rate["rate"] * 1.1 for rate, small in rates]
    return max(reach, default=0.0) or 0.01


def _marks(rates: Sequence[dict[str, Any] | None], limit: float) -> list[dict[str, Any] | None]:
    return [rate and _mark(rate, limit) for rate in rates]


def _mark(rate: dict[str, Any], limit: float) -> dict[str, Any]:
    bounded = rate["low"] is not None
    return {
        **rate,
        "x": _per_cent(rate["rate"], limit),
        "x_low": _per_cent(rate["low"], limit) if bounded else None,
        "x_high": _per_cent(rate["high"], limit) if bounded else None,
        "cut": bounded and rate["high"] > limit,
    }


def _per_cent(value: float, limit: float) -> float:
    return round(min(100.0, 100 * value / limit), 3)
