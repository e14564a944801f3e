"""Where bars, dots and ticks of the evaluation report stand."""

from __future__ import annotations

import pytest

from asr.offline.plots import PANEL, axis_end, dot_plot, histogram, series, ticks


@pytest.mark.parametrize(
    ("value", "end"), [(0.0873, 0.1), (0.1, 0.1), (0.31, 0.4), (0.52, 0.6), (1.0, 1.0), (1.01, 1.5), (27, 30), (1, 1)]
)
def test_axes_end_at_round_values(value: float, end: float):
    assert axis_end(value) == end
    steps = ticks(end)
    assert steps[0] == 0
    assert steps[-1] == end
    assert 3 <= len(steps) <= 7


def test_dots_stand_in_proportion():
    rates = [{"rate": 0.1, "low": 0.05, "high": 0.2}, None, {"rate": 0.3, "low": None, "high": None}]
    few = {"small": True, "rates": [{"rate": 0.3, "low": 0.0, "high": 2.0}, None, None]}
    plot = dot_plot([{"small": False, "rates": rates}, few])
    end = plot["ticks"][-1]["value"]
    assert end == 0.4, "the interval of a handful does not stretch the axis"
    first, missing, bare = plot["groups"][0]["marks"]
    assert (first["x_low"], first["x"], first["x_high"], first["cut"]) == (12.5, 25, 50, False)
    assert missing is None
    assert (bare["x"], bare["x_low"]) == (75, None)
    cut = plot["groups"][1]["marks"][0]
    assert (cut["x_high"], cut["cut"]) == (100, True)


def test_plot_without_any_error():
    plot = dot_plot([{"small": False, "rates": [{"rate": 0.0, "low": 0.0, "high": 0.0}, None]}])
    assert plot["groups"][0]["marks"][0]["x"] == 0


def test_bars_are_as_high_as_their_counts():
    drawn = histogram(["a", "b", "c"], [5, 0, 10], 20, {0: "0", 3: "3"})
    heights = [bar["height"] for bar in drawn["bars"]]
    assert heights[2] == pytest.approx(2 * heights[0], abs=0.02)
    assert heights[1] == 0
    assert heights[2] == pytest.approx((PANEL["bottom"] - PANEL["top"]) / 2, abs=0.02)
    assert drawn["names"] == [("0", PANEL["left"]), ("3", PANEL["right"])]
    assert histogram([], [], 0, {})["bars"] == []


def test_systems_differ_in_shape_and_colour():
    drawn = [(each["colour"], each["shape"]) for each in map(series, range(6))]
    assert len({colour for colour, _ in drawn}) == len({shape for _, shape in drawn}) == 6
