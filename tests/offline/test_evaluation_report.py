"""The evaluation folder: three files, and a page that stands alone, shows what it should and nothing as markup."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from asr.offline import examples
from asr.offline.evaluation_report import write_results
from asr.offline.examples import audio_of, chosen, data_uri, example
from asr.offline.figures import all_figures
from asr.offline.report_page import focus_of
from asr.offline.results import Evaluation, Output, Utterances

FLAC = b"fLaC" + bytes(96)
SAID = ["아버지가 방에 들어가신다", "네", "오늘 날씨가 좋습니다", "전화 주세요"]
# Errors without spaces: 1, 0, 2, 3 and 0, 3, 0, 1.
BASE = ["아버지 가방에 들어가셨다", "네", "오늘 날시가 좋씀니다", "전화"]
TUNED = ["아버지가 방에 들어가신다", "네네네네", "오늘 날씨가 좋습니다", "전화 주세용"]


def utterances(references: list[str], name: str = "test") -> Utterances:
    count = len(references)
    speakers = [f"화자 {at % 3}" for at in range(count)]
    return Utterances(
        name, [f"clip-{at}" for at in range(count)], references, [1.5 + at % 9 for at in range(count)], speakers,
        ["youtube"] * count, [-20.0] * count,
    )  # fmt: skip


def evaluation(name: str = "test", systems: dict[str, list[str]] | None = None, **more: list[str]) -> Evaluation:
    texts = systems or {"base": BASE, "tuned": TUNED}
    outputs = [Output(system, "padded", written, 2.0, {"kind": "adapter"}) for system, written in texts.items()]
    return Evaluation(utterances(SAID, name), outputs, more.get("notes", []))


def flac_of(_set: str, at: int) -> bytes:
    return FLAC + bytes([at % 256])


class Page(HTMLParser):
    """What a browser would find: text, attributes, and whether every element is closed."""

    VOID = frozenset({"meta", "wbr", "path", "line", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def report(folder: Path, evaluations: list[Evaluation], settings: dict | None = None, open_audio=flac_of) -> str:
    write_results(folder, evaluations, settings or {"run": "first"}, open_audio)
    return (folder / "report.html").read_text(encoding="utf-8")


# The folder


def test_same_evaluation_gives_same_bytes_but_for_speed(tmp_path: Path):
    slow = Evaluation(utterances(SAID), [Output("base", "padded", BASE, 9.0), Output("tuned", "padded", TUNED, 8.0)])
    fast = Evaluation(utterances(SAID), [Output("base", "padded", BASE, 1.0), Output("tuned", "padded", TUNED, 1.0)])
    for name, made in {"a": slow, "b": slow, "c": fast}.items():
        report(tmp_path / name, [made])
    files = {name: {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in "abc"}
    assert set(files["a"]) == {"metrics.json", "utterances.csv", "report.html"}
    assert files["a"] == files["b"]
    for name in files:
        without = json.loads(files[name]["metrics.json"]) | {"speed": None}
        page = re.sub(rb'<section id="speed">.*?</section>', b"", files[name]["report.html"], flags=re.DOTALL)
        files[name] |= {"metrics.json": json.dumps(without).encode(), "report.html": page}
    assert files["a"] == files["c"]


def test_metrics_hold_settings_and_rules(tmp_path: Path):
    report(tmp_path, [evaluation()], {"run": "first", "model": Path("runs/first")})
    figures = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert figures["settings"] == {"run": "first", "model": str(Path("runs/first"))}
    assert figures["normalizer"]["normalized"]
    assert figures["intervals"]["confidence"] == 0.95


# The page stands alone


def test_page_asks_for_nothing_outside(tmp_path: Path):
    html = report(tmp_path, [evaluation(), evaluation("also")])
    page = Page(html)
    policies = [at["content"] for tag, at in page.found if at.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; media-src data:"]
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.found}
    for _, attributes in page.found:
        assert not {"href", "srcset", "background", "onclick"} & set(attributes)
        assert (attributes.get("src") or "data:audio/").startswith("data:audio/")
    assert not re.search(r"https?:|url\(|@import", html)


def test_texts_are_never_markup(tmp_path: Path):
    bad = '<script>alert("1")</script>&amp;'
    said = Utterances("<b>test", [bad] * 2, [bad + "가", "나"], [2.0, 2.0], [bad, None], [bad, None], [None] * 2)
    outputs = [Output(f"{bad}{{0}}", "padded", [bad, bad], 1.0, {bad: bad}), Output("b", "padded", ["", "나"], 1.0)]
    html = report(
        tmp_path, [Evaluation(said, outputs, [bad])], {"run": bad, "list": [bad], "nested": {bad: {"a": bad}}}
    )
    assert "<script" not in html
    assert "<b>test" not in html
    assert Page(html).text.count(bad) > 10, "it is shown as it was written"


def test_characters_that_no_page_may_hold_are_replaced(tmp_path: Path):
    said = utterances(["가\x00나", "다"])
    html = report(tmp_path, [Evaluation(said, [Output("base", "padded", ["가\x1b", "다"], 1.0)])], {"run": "a\x07"})
    assert not re.search("[\x00-\x08\x0b-\x1f]", html)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_any_number_of_systems(tmp_path: Path, count: int):
    texts = {f"시스템-{at}": TUNED if at else BASE for at in range(count)}
    page = Page(report(tmp_path, [evaluation(systems=texts), evaluation("before", systems=texts)]))
    for label in texts:
        assert label in page.text
    assert ("Learnt and forgotten" in page.text) == ("Most improved" in page.text or count == 1)


def test_both_windows_have_a_table(tmp_path: Path):
    both = Evaluation(
        utterances(SAID), [Output("base", "padded", BASE, 1.0), Output("base", "trimmed", TUNED, 1.0)]
    )  # fmt: skip
    page = Page(report(tmp_path, [both]))
    assert "base (trimmed)" in page.text
    assert "first window" in page.text
    assert "first window" not in Page(report(tmp_path, [evaluation()])).text


@pytest.mark.parametrize("texts", [[["가"], ["가"]], [[""], ["나나나"]]])
def test_a_single_utterance(tmp_path: Path, texts: list[list[str]]):
    outputs = [Output(name, "padded", one, 0.0) for name, one in zip(("base", "tuned"), texts, strict=True)]
    page = Page(report(tmp_path, [Evaluation(utterances(["가"]), outputs)], open_audio=lambda _set, _at: None))
    assert "Only 1 utterances" in page.text
    assert "Of a single utterance" in page.text
    assert "nan" not in page.text
    assert "inf" not in page.text.replace("information", "")


def test_reader_is_told_what_a_difference_is_worth(tmp_path: Path):
    many = utterances(SAID * 20)
    outputs = {"base": BASE * 20, "tuned": SAID * 20, "same": BASE * 20}

    def told(first: str, second: str) -> str:
        pair = [Output(name, "padded", outputs[name], 1.0) for name in (first, second)]
        return Page(report(tmp_path, [Evaluation(many, pair)])).text

    assert "tuned makes fewer errors than base: the whole interval lies below 0" in told("base", "tuned")
    assert "base makes more errors than tuned: the whole interval lies above 0" in told("tuned", "base")
    assert "same and base cannot be told apart" in told("base", "same")


def test_report_of_many_utterances_stays_small(tmp_path: Path):
    asked = []

    def open_audio(name: str, at: int) -> bytes:
        asked.append((name, at))
        return FLAC

    # As many speakers as utterances, too.
    said = utterances(SAID * 500)
    said.speakers[:] = [f"speaker-{at}" for at in range(len(said))]
    outputs = [Output("base", "padded", BASE * 500, 1.0), Output("tuned", "padded", TUNED * 500, 1.0)]
    html = report(tmp_path, [Evaluation(said, outputs, [f"note {at}" for at in range(1000)])], open_audio=open_audio)
    assert len(html) < 200_000
    assert 10 < len(asked) == len(set(asked)) < 50
    assert html.count("<li>note ") == 10
    assert "990 more notes" in html


# What it shows


def test_differences_hold_both_texts(tmp_path: Path):
    """Without what is underlined a line is the reference, without what is struck out it is what was written."""
    html = report(tmp_path, [evaluation()])
    lines = re.findall(r'<dd lang="ko">(.*?)</dd>', html)
    shown = set()
    for line in lines:
        marked = re.sub(r"<wbr>|<small.*?</small>", "", line).replace("␣", " ")
        said, written = (
            re.sub(rf"<{gone}[^>]*>.*?</{gone}>|</?{kept}[^>]*>", "", marked)
            for gone, kept in (("ins", "del"), ("del", "ins"))
        )
        shown.add((said.strip(), written.strip()))
    assert {(SAID[0], BASE[0]), (SAID[2], BASE[2]), (SAID[1], TUNED[1]), (SAID[3], TUNED[3])} <= shown


def test_lists_are_ranked_by_errors():
    lists = chosen(evaluation(), "tuned")
    assert lists["worst"] == [1, 3]
    assert lists["improved"] == [2, 0], "what stands in one list is left out of the next"
    assert lists["worsened"] == []
    alone = chosen(evaluation(), "base")
    assert (alone["worst"], alone["improved"], alone["worsened"]) == ([3, 2, 0], [], [])


def test_most_worsened_are_found():
    said = utterances(["가나다라마바사아"] * 30)
    right, wrong = "가나다라마바사아", "가나다라"
    base = [right if at in (3, 4) else "가" for at in range(30)]
    tuned = [wrong if at == 4 else "가나다라마바사" if at == 3 else "나" for at in range(30)]
    lists = chosen(
        Evaluation(said, [Output("base", "padded", base, 1.0), Output("tuned", "padded", tuned, 1.0)]), "tuned"
    )
    assert lists["worsened"] == [4, 3]
    assert len(lists["worst"]) == 10


def test_symptoms_are_shown_with_their_reason(tmp_path: Path):
    texts = {"base": BASE, "tuned": [*TUNED[:3], "전화 " + "주세요 " * 30]}
    page = Page(report(tmp_path, [evaluation(systems=texts)]))
    assert "loop: 주세요 30 times in a row" in page.text
    assert "too long: " in page.text


def test_closest_look_is_at_the_best_of_the_others():
    worse = ["전혀 다른 말"] * 4
    figures = evaluation(systems={"base": BASE, "a": worse, "b": TUNED}).figures
    assert focus_of(figures) == "b"
    assert focus_of(evaluation(systems={"base": BASE}).figures) == "base"
    padded = [
        Output("base", "trimmed", BASE, 1.0),
        Output("base", "padded", SAID, 1.0),
        Output("a", "padded", worse, 1.0),
    ]
    assert focus_of(Evaluation(utterances(SAID), padded).figures) == "a", "the other window is not another system"
    both = [*padded, Output("a", "trimmed", SAID, 1.0)]
    assert focus_of(Evaluation(utterances(SAID), both).figures) == "a", "nor does it count, however good"


def test_very_long_outputs_are_cut():
    long = evaluation(systems={"base": BASE, "tuned": [*TUNED[:3], "가" * 3000]})
    (line,) = (line for line in example(long, 3, {}).lines if line.label == "tuned")
    assert sum(len(segment.hypothesis) for segment in line.segments) <= examples.LONGEST_TEXT
    assert sum(len(segment.hypothesis) for segment in line.segments) + line.left_out >= 3000


# Audio


@pytest.mark.parametrize(
    ("audio", "kind"),
    [(b"fLaC..", "flac"), (b"RIFF..", "wav"), (b"OggS..", "ogg"), (b"ID3..", "mpeg"), (b"\xff\xfb", "mpeg")],
)
def test_audio_is_embedded_with_its_type(audio: bytes, kind: str):
    head, _, body = data_uri(audio).partition(",")
    assert head == f"data:audio/{kind};base64"
    assert base64.b64decode(body) == audio


def test_audio_stays_within_its_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The first of each list goes before the second of any; what fits no more is said to be left out."""
    monkeypatch.setattr(examples, "AUDIO_BYTES", 250)
    sizes = {1: 100, 3: 100, 2: 120, 0: 20}
    made = evaluation()
    found = audio_of([(made, {"worst": [1, 3], "improved": [2, 0]})], lambda _set, at: FLAC[: sizes[at]])
    assert {at: audio and len(audio) for (_, at), audio in found.items()} == {1: 100, 2: 100, 3: None, 0: 20}
    html = report(tmp_path, [made], open_audio=lambda _set, _at: FLAC + bytes(100))
    assert html.count("<audio") == 1
    assert "audio left out" in html


def test_no_audio_no_player(tmp_path: Path):
    html = report(tmp_path, [evaluation()], open_audio=lambda _set, _at: None)
    assert "<audio" not in html
    assert "audio left out" not in html


# Figures


def test_figures_are_shown_as_they_are_counted(tmp_path: Path):
    made = evaluation()
    page = Page(report(tmp_path, [made]))
    rate = all_figures([made], {})["tuned"]["cer"]
    assert f"{100 * rate:.2f}" in page.text
    for rule in made.figures["systems"][0]["symptoms"]:
        assert rule.replace("_", " ") in page.text
