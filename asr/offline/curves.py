"""Curves: loss, validation error rates and learning rate of a run, as one picture."""

from __future__ import annotations

import io
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from asr.offline.pins import first_line
from asr.offline.runs import Run
from utils import log, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by readers of every colour vision (Okabe and Ito, 2008).
BLACK, BLUE, ORANGE, GREEN = "#222222", "#0072B2", "#E69F00", "#009E73"
RATES = {"eval_cer": ("CER (spaces left out)", BLUE), "eval_wer": ("WER", ORANGE)}
LEGEND: dict[str, Any] = {"loc": "upper right", "edgecolor": "none", "framealpha": 0.9}
FEW_POINTS = 12
SPIKE = 3.0


def draw_curves(run: Run) -> None:
    """Write curves.png into the run's folder; where that cannot be, say why: no training fails for a picture."""
    try:
        lines = read_metrics(run)
        if not _panels(lines):
            log.info("no curves.png: metrics.jsonl has nothing to draw yet")
            return
        with _own_cache():
            write_atomically(run.path / "curves.png", _picture(lines, run.best.get("step")))
    except Exception as error:
        log.warning("warning: curves.png could not be drawn (%s)", first_line(error))
        log.debug("curves.png", exc_info=True)


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; one that was cut short, as a crash leaves it, is passed over."""
    file = run.path / "metrics.jsonl"
    lines = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            log.debug("%s: no JSON: %s", file, line)
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def rates_at(run: Run, step: int | None) -> dict[str, float]:
    """Return cer, cer_with_spaces and wer of the validation clips at a step, or nothing where none was measured."""
    lines = [line for line in read_metrics(run) if line["step"] == step and "eval_cer" in line]
    return {name: lines[-1][f"eval_{name}"] for name in ("cer", "cer_with_spaces", "wer")} if lines else {}


@contextmanager
def _own_cache() -> Iterator[None]:
    """Give matplotlib a folder of its own inside the block: the one in HOME may not be writable."""
    before = os.environ.get("MPLCONFIGDIR")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MPLCONFIGDIR"] = folder
            yield
    finally:
        os.environ.pop("MPLCONFIGDIR", None)
        if before is not None:
            os.environ["MPLCONFIGDIR"] = before


def _picture(lines: list[dict[str, Any]], best: int | None) -> bytes:
    """Return the figure as a PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = io.BytesIO()
    with matplotlib.rc_context():
        # A matplotlibrc in the user's working folder is not meant for us.
        matplotlib.rcdefaults()
        # A canvas and a figure of our own: pyplot would look for a display, and keep them.
        FigureCanvasAgg(draw(lines, best)).print_png(picture)
    return picture.getvalue()


def draw(lines: list[dict[str, Any]], best: int | None) -> Figure:
    """Draw what there is in the lines of metrics.jsonl.

    Args:
        lines: as `read_metrics` gives them, with something to draw in them.
        best: step whose weights are kept, which is marked.
    """
    from matplotlib.figure import Figure

    panels = _panels(lines)
    heights = [PANELS[name][0] for name in panels]
    figure = Figure(figsize=(9, 1 + sum(heights)), dpi=110, layout="constrained")
    rows = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for name, axes in zip(panels, rows, strict=True):
        top = PANELS[name][1](axes, lines)
        axes.set_ylim(0, 1.08 * top or 1)
        axes.set_xlim(0, 1.03 * max(line["step"] for line in lines) or 1)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if best is not None and name != "learning_rate":
            axes.axvline(best, color=BLUE, linewidth=1.2, linestyle="--", zorder=1)
        if name == "rates":
            _mark_best(axes, lines, best)
    rows[-1].set_xlabel("optimizer step")
    rows[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _panels(lines: list[dict[str, Any]]) -> list[str]:
    """Return the panels for which there are any points."""
    keys = {"loss": ["loss"], "rates": list(RATES), "learning_rate": ["learning_rate"]}
    return [name for name in PANELS if any(_points(lines, key)[0] for key in keys[name])]


def _points(lines: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of what was logged under `key`; None stands there for what was no number."""
    found = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _smoothed(values: list[float]) -> list[float]:
    """Return the median around each value, over about a twentieth of all: a single spike leaves it alone."""
    reach = min(max(2, len(values) // 40), 50)
    return [statistics.median(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def _draw_loss(axes: Axes, lines: list[dict[str, Any]]) -> float:
    steps, losses = _points(lines, "loss")
    axes.set_ylabel("training loss")
    if len(steps) < FEW_POINTS:
        axes.plot(steps, losses, color=BLACK, linewidth=2, marker="o", markersize=4)
        return max(losses)
    smoothed = _smoothed(losses)
    axes.plot(steps, losses, color=BLACK, alpha=0.35, linewidth=0.8, label="as logged")
    axes.plot(steps, smoothed, color=BLACK, linewidth=2.2, label="smoothed")
    axes.legend(**LEGEND)
    if max(losses) < SPIKE * max(smoothed):
        return max(losses)
    # Drawn whole, it would press everything else against the axis.
    axes.set_title(f"highest: {max(losses):.4g} at step {steps[losses.index(max(losses))]}", loc="left", fontsize=11)
    return 1.5 * max(smoothed)


def _draw_rates(axes: Axes, lines: list[dict[str, Any]]) -> float:
    for key, (label, color) in RATES.items():
        steps, rates = _points(lines, key)
        axes.plot(steps, rates, color=color, linewidth=2, marker="o", markersize=4, label=label)
    axes.set_ylabel("validation error rate")
    # A single evaluation stands where the legend would.
    axes.legend(**LEGEND | {"loc": "best"})
    return max(rate for key in RATES for rate in _points(lines, key)[1])


def _draw_learning_rate(axes: Axes, lines: list[dict[str, Any]]) -> float:
    steps, rates = _points(lines, "learning_rate")
    axes.plot(steps, rates, color=GREEN, linewidth=2, marker="o" if len(steps) < FEW_POINTS else "", markersize=4)
    axes.set_ylabel("learning rate")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
    return max(rates)


def _mark_best(axes: Axes, lines: list[dict[str, Any]], best: int | None) -> None:
    """Point out the evaluation whose weights are kept."""
    rates = {key: dict(zip(*_points(lines, key), strict=True)) for key in RATES}
    if best in rates["eval_cer"]:
        told = [
            f"{key.removeprefix('eval_').upper()} {found[best]:.4f}" for key, found in rates.items() if best in found
        ]
        axes.plot([best], [rates["eval_cer"][best]], color=BLUE, marker="*", markersize=15, markeredgecolor="white")
        axes.set_title(f"best: step {best}, {', '.join(told)}", loc="left", fontsize=11)


# How high each panel is, in inches, and what draws it; a drawing returns its highest value.
PANELS = {"loss": (3.0, _draw_loss), "rates": (3.0, _draw_rates), "learning_rate": (1.3, _draw_learning_rate)}
