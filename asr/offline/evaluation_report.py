"""The evaluation folder: metrics.json and utterances.csv for programs and spreadsheets, report.html for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import utils
from asr.offline.examples import OpenAudio
from asr.offline.figures import all_figures
from asr.offline.report_page import page_of
from asr.offline.results import Evaluation
from asr.offline.summary import spoken
from asr.offline.utterance_table import utterances_csv

# Control characters, and halves of surrogate pairs, which UTF-8 cannot write.
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def write_results(
    folder: Path, evaluations: Sequence[Evaluation], settings: dict[str, Any], open_audio: OpenAudio
) -> None:
    """Write metrics.json, utterances.csv and report.html into `folder`, each whole or not at all.

    The same evaluations give the same bytes. What a clock measured (`Output.decode_s`) stands in metrics.json under
    `speed` and in report.html inside `<section id="speed">`, and nowhere else.

    Args:
        evaluations: the main set first.
        settings: what was asked for and used; kept in metrics.json, listed in the report. `run` names it.
        open_audio: gives the bytes of a file that browsers play (FLAC, WAV, MP3 or Ogg) for the name of a set and the
            place of an utterance, or None; it is asked only for utterances that the report shows.

    Raises:
        UserError: the references of a set hold no text.
    """
    figures = all_figures(evaluations, settings)
    utils.write_json(folder / "metrics.json", figures)
    utils.write_atomically(folder / "utterances.csv", utterances_csv(evaluations))
    utils.write_atomically(folder / "report.html", report_html(evaluations, figures, open_audio))


def report_html(evaluations: Sequence[Evaluation], figures: Mapping[str, Any], open_audio: OpenAudio) -> str:
    """Return the report as one HTML page that asks for nothing outside itself and needs no script.

    Args:
        evaluations: the main set first.
        figures: of these (`all_figures`).
        open_audio: as for `write_results`.
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
    environment.filters.update(
        percent=_percent,
        points=_points,
        span=_span,
        span_points=_span_points,
        number=_number,
        setting=_setting,
        spoken=spoken,
    )
    return environment.get_template("evaluation_report.html.j2").render(page_of(evaluations, figures, open_audio))


# How values are written


def _presentable(value: object) -> object:
    """Write counts with separators, and texts without what a page cannot hold."""
    if type(value) is str:
        return UNFIT.sub("\ufffd", value)
    if type(value) is int:
        return f"{value:,}"
    return "–" if value is None else value


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.2f}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}".replace("-", "−")


def _span(found: Mapping[str, Any]) -> str:
    return "" if found["low"] is None else f"{_percent(found['low'])} – {_percent(found['high'])}"


def _span_points(found: Mapping[str, Any]) -> str:
    return "" if found["low"] is None else f"{_points(found['low'])} to {_points(found['high'])}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return (f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}").replace("-", "−")


def _setting(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value))
    if value is None:
        return "–"
    return str(value) if isinstance(value, (str, Path)) else json.dumps(value, ensure_ascii=False, default=str)
