"""The views of the page: what stands on it, as HTML of templates that escape whatever they are given."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from asr.offline.alignment import Segment, align
from asr.offline.error_rates import without_spaces
from asr.offline.page.wording import TEXTS, text
from asr.offline.subtitles import FORMATS, times_of
from asr.offline.transcripts import Shape, Transcript
from asr.shared.text import clean_text

MEDIA_TYPES = {
    "txt": "text/plain",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
    "tsv": "text/tab-separated-values",
    "json": "application/json",
}
TIMES_OF = {"json": "word"}
# Laying texts side by side takes the square of their length.
LONGEST_COMPARED = 2000


@dataclass(frozen=True)
class Card:
    """What one model wrote.

    Attributes:
        title: of the model.
        segments: its text beside the other one; without another a single equal one.
        rest: of the text, which is not compared.
        errors: in words, where it is known what is said.
    """

    title: str
    segments: list[Segment]
    rest: str = ""
    errors: str = ""


def result_html(transcript: Transcript, reference: str, shape: Shape, language: str, tuned: bool) -> str:
    """Return a transcript for the page: texts side by side, times to click on, files to keep.

    Args:
        transcript: with `base` where both models wrote it.
        reference: what is said, or "".
        shape: of subtitles.
        language: of the page.
        tuned: there is a base model that this one was trained from.
    """
    titles = [text(language, "tuned" if tuned else "model"), text(language, "base")]
    texts = [transcript.text] + ([] if transcript.base is None else [transcript.base])
    reference = clean_text(reference)
    return _template("result.html.j2").render(
        cards=cards_of(titles, texts, reference, language),
        legend=_legend(texts, reference, language),
        reference=reference,
        transcript=transcript,
        downloads=downloads_of(transcript, shape),
        words=TEXTS[language],
        clock=clock,
    )


def cards_of(titles: Sequence[str], texts: Sequence[str], reference: str, language: str) -> list[Card]:
    """Return a card for each text: compared with what is said where that is known, else with each other.

    Args:
        titles: at least one a text.
        texts: of one model, or of the tuned one and the base.
        reference: what is said, or "".
        language: of the page.
    """
    cards = []
    for at, (title, written) in enumerate(zip(titles, texts, strict=False)):
        other = reference or (texts[1 - at] if len(texts) > 1 else written)
        segments = align(other[:LONGEST_COMPARED], written[:LONGEST_COMPARED])
        rest = clean_text(written)[LONGEST_COMPARED:]
        cards.append(Card(title, segments, rest, _errors(reference, written, language) if reference else ""))
    return cards


def downloads_of(transcript: Transcript, shape: Shape) -> list[dict[str, str]]:
    """Return each format's file as a link that needs no server: nothing of it stays there."""
    links = []
    for ending, write in FORMATS.items():
        content = write(transcript, times_of(TIMES_OF.get(ending, "auto"), ending), shape)
        encoded = base64.b64encode(content.encode()).decode()
        name = f"{Path(transcript.name).stem or 'recording'}.{ending}"
        url = f"data:{MEDIA_TYPES[ending]};charset=utf-8;base64,{encoded}"
        links.append({"ending": ending, "name": name, "url": url})
    return links


def header_html(facts: dict[str, str], language: str) -> str:
    """Return the head of the page: what is running here.

    Args:
        facts: by the name of their text.
        language: of the page.
    """
    return _template("header.html.j2").render(facts=facts, words=TEXTS[language])


def evaluation_html(folder: Path | None, language: str) -> str:
    """Return the figures of a run's evaluation, or how to come by them.

    Args:
        folder: of the evaluation; None where there is no run.
        language: of the page.
    """
    figures = read_figures(folder) if folder else None
    of_test = ""
    if figures:
        minutes = f"{60 * figures['hours']:.1f}"
        of_test = text(language, "of_test", utterances=f"{figures['utterances']:,}", minutes=minutes)
    return _template("evaluation.html.j2").render(
        figures=figures,
        of_test=of_test,
        report=text(language, "full_report", path=folder and f"{folder.parent.name}/{folder.name}/report.html"),
        words=TEXTS[language],
    )


def read_figures(folder: Path) -> dict[str, Any] | None:
    """Return utterances, hours and systems of an evaluation's main set; None where there is none that can be read."""
    try:
        main = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["sets"][0]
        systems = [
            {"label": system["label"], **{name: _rate(system["metrics"][name]) for name in ("cer", "wer")}}
            for system in main["systems"]
        ]
        return {"utterances": main["utterances"], "hours": main["hours"], "systems": systems}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def clock(seconds: float) -> str:
    """Return a time as 1:02:03.4, or 2:03.4 within the first hour."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    within = f"{rest // 10:02}.{rest % 10}"
    return f"{hours}:{minutes:02}:{within}" if hours else f"{minutes}:{within}"


def _rate(metric: dict[str, Any]) -> str:
    low, high = metric["low"], metric["high"]
    span = "" if low is None else f" ({100 * low:.1f} – {100 * high:.1f})"
    return f"{100 * metric['rate']:.1f} %{span}"


def _errors(reference: str, written: str, language: str) -> str:
    from rapidfuzz.distance import Levenshtein

    said = without_spaces(reference)
    wrong = Levenshtein.distance(said, without_spaces(clean_text(written)))
    rate = f"{100 * wrong / max(1, len(said)):.1f} %"
    return text(language, "errors", errors=wrong, length=len(said), cer=rate)


def _legend(texts: Sequence[str], reference: str, language: str) -> str:
    if not reference and len(texts) < 2:
        return ""
    if not reference and texts[0] == texts[1]:
        return text(language, "same")
    told = text(language, "legend_reference" if reference else "legend_models")
    long = max(map(len, [*texts, reference])) > LONGEST_COMPARED
    return f"{told} {text(language, 'legend_pieces')}" if long else told


@cache
def _template(name: str) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent, encoding="utf-8")
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)
