"""Views: differences are where they are, times are those of the transcript, and no text becomes markup."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path

import pytest

from asr.offline.page.views import clock, downloads_of, evaluation_html, header_html, read_figures, result_html
from asr.offline.subtitles import FORMATS
from asr.offline.transcripts import Segment, Shape, Transcript
from asr.offline.word_times import Word

WORDS = [Word("오늘은", 0.5, 1.0), Word("맑습니다", 1.0, 1.75)]
SPOKEN = Transcript("calls/가 1.mp3", 4.0, [Segment(0.5, 1.75, "오늘은 맑습니다", WORDS), Segment(2.0, 3.0, "네")])


def compared(base: str, text: str = "오늘은 맑습니다") -> Transcript:
    return Transcript("a.wav", 2.0, [Segment(0.0, 2.0, text)], base=base)


def shown(transcript: Transcript, reference: str = "", language: str = "en", tuned: bool = True) -> str:
    return result_html(transcript, reference, Shape(), language, tuned)


def texts(page: str) -> list[str]:
    """What stands in the cards, coloured stretches in brackets."""
    found = re.findall(r'<p class="text">(.*?)</p>', page, re.DOTALL)
    marked = [re.sub(r"<mark[^>]*>(.*?)</mark>", r"[\1]", text) for text in found]
    return [html.unescape(re.sub(r"<[^>]+>", "", text)).strip() for text in marked]


def test_two_models_are_coloured_where_they_differ():
    assert texts(shown(compared("오늘은 밝습니다"))) == ["오늘은 [맑]습니다", "오늘은 [밝]습니다"]
    assert "Both write the same." in shown(compared("오늘은 맑습니다"))
    assert "[" not in "".join(texts(shown(compared("오늘은 맑습니다"))))


def test_with_what_is_said_both_are_measured_against_it():
    page = shown(compared("오는 밝습니다"), "오늘은 밝습니다")
    assert texts(page) == ["오늘은 [맑]습니다", "오[는]▯ 밝습니다"]
    assert "1 of 7 characters wrong, CER 14.3 %" in page
    assert "2 of 7 characters wrong, CER 28.6 %" in page
    assert 'title="늘"' in page


def test_one_model_alone_stands_uncoloured():
    assert texts(shown(SPOKEN, tuned=False)) == ["오늘은 맑습니다 네"]
    assert "Base model" not in shown(SPOKEN, tuned=False)
    assert "<h3>Model</h3>" in shown(SPOKEN, tuned=False)


def test_silence_is_told():
    page = shown(Transcript("a.wav", 2.0, []), language="ko")
    assert texts(page) == ["(말소리 없음)"]
    assert 'class="segments"' not in page


def test_times_are_those_of_the_segments():
    times = re.findall(r'data-start="([\d.]+)" data-end="([\d.]+)">▶ ([\d:.]+)<', shown(SPOKEN))
    assert times == [("0.500", "1.750", "0:00.5"), ("2.000", "3.000", "0:02.0")]


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0:00.0"), (59.96, "1:00.0"), (3599.9, "59:59.9"), (3661, "1:01:01.0")]
)
def test_clock(seconds, told):
    assert clock(seconds) == told


def test_files_are_those_that_the_command_writes():
    for link in downloads_of(SPOKEN, Shape()):
        kind, _, content = link["url"].partition(",")
        assert kind.startswith("data:")
        times = {"txt": "none", "json": "word"}.get(link["ending"], "segment")
        assert base64.b64decode(content).decode() == FORMATS[link["ending"]](SPOKEN, times, Shape())
        assert link["name"] == f"가 1.{link['ending']}"


@pytest.mark.parametrize("place", ["text", "base", "reference", "name", "note"])
def test_no_text_becomes_markup(place):
    bad = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    values = {"text": "네", "base": "네", "reference": "", "name": "a.wav", "note": "네"} | {place: bad}
    transcript = Transcript(values["name"], 1.0, [Segment(0, 1, values["text"])], [values["note"]], values["base"])
    page = shown(transcript, values["reference"])
    assert "<script" not in page
    assert "<img" not in page
    assert "<script" not in header_html({"model": bad}, "en")


def test_a_long_text_is_shown_to_its_end_quickly():
    text = " ".join(f"낱말{number}" for number in range(20_000))
    page = shown(compared("다른 " + text, text), language="ko")
    assert texts(page)[0].replace("[", "").replace("]", "").endswith("낱말19999")
    assert "앞부분만" in page


def test_a_loop_is_told_beside_its_segment():
    page = shown(Transcript("a.wav", 2.0, [Segment(0, 2, "네 네", [], 12)]), language="en")
    assert "the model repeated this 12 times" in page


def test_evaluation(tmp_path: Path):
    metric = {"rate": 0.0616, "low": 0.031, "high": 0.099}
    system = {"label": "tuned <b>", "metrics": {"cer": metric, "wer": metric | {"low": None, "high": None}}}
    figures = {"sets": [{"utterances": 1234, "hours": 0.5, "systems": [system]}]}
    (tmp_path / "metrics.json").write_text(json.dumps(figures), encoding="utf-8")
    page = evaluation_html(tmp_path, "en")
    assert "6.2 % (3.1 – 9.9)" in page
    assert "<td>6.2 %</td>" in page
    assert "1,234 utterances of the test split, 30.0 minutes" in page
    assert "tuned &lt;b&gt;" in page
    for content in ("", "[]", '{"sets": []}', '{"sets": [{"systems": [{}], "utterances": 1, "hours": 1}]}'):
        (tmp_path / "metrics.json").write_text(content, encoding="utf-8")
        assert read_figures(tmp_path) is None
    assert "evaluate_model.py" in evaluation_html(tmp_path, "ko")
