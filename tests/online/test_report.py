"""The report is one page that stands alone, tells every figure, and shows texts without running or trusting them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asr.online.report import report_html

REPEATABLE = settings(derandomize=True, deadline=None, database=None, max_examples=20)
VOID = {"meta", "rect", "line"}


def bell(edges: list[float], middle: float, clips: int) -> list[int]:
    """Return counts with a hump, as lengths and rates have them."""
    heights = [math.exp(-((math.log((left + 0.25) / middle)) ** 2) * 2) for left in edges[:-1]]
    up_to = [round(clips * sum(heights[:n]) / sum(heights)) for n in range(len(edges))]
    return [after - before for before, after in pairwise(up_to)]


def sample() -> dict[str, Any]:
    """The figures of a usual preparation."""
    seconds, rates = [float(edge) for edge in range(31)], [edge / 2 for edge in range(31)]
    splits = {"train": 760, "validation": 95, "test": 95}
    return {
        "rows_read": 984,
        "rows_kept": 950,
        "rows_dropped": 34,
        "reasons": {"too short": 12, "text says too much": 9, "empty text": 7, "duplicate audio": 3, "clipped": 3},
        "splits": {
            "train": {"clips": 760, "hours": 0.62, "speakers": 11, "sentences": 755, "characters": 12345},
            "validation": {"clips": 95, "hours": 0.0803, "speakers": 3, "sentences": 94, "characters": 1502},
            "test": {"clips": 95, "hours": 0.0791, "speakers": 3, "sentences": 95, "characters": 1498},
        },
        "sources": {
            "table": {"read": 700, "kept": 676, "dropped": 24, "hours": 0.55,
                      "splits": {"train": 540, "validation": 68, "test": 68}},
            "zeroth-korean": {"read": 284, "kept": 274, "dropped": 10, "hours": 0.23,
                              "splits": {"train": 220, "validation": 27, "test": 27}},
        },
        "shared": {"speakers": 0, "sentences": 4},
        "duration_s": {"edges": seconds, "mean": 3.3, "median": 2.9, "p95": 8.1}
        | {name: bell(seconds, 2.9, clips) for name, clips in splits.items()},
        "syllables_per_second": {"edges": rates, "mean": 4.62, "median": 4.5, "p95": 7.3}
        | {name: bell(rates, 4.5, clips) for name, clips in splits.items()},
        "characters": {
            "distinct": 812,
            "kinds": {"Hangul": 10234, "space": 2034, "Latin": 12, "digit": 30, "punctuation": 3, "other": 0},
            "most": [[char, 2034 - 67 * n] for n, char in enumerate(" 이다는가에의을하고한지도로사은리자기시어서아대")],
            "rarest": [*"뷁꿰췌쀼햏궤뮌", "\u200b", "\u0301", "😀"],
            "unseen": list("똠펲퓰"),
        },
        "examples": {
            "too short": [
                {"source_id": "table/clips.tsv:12", "detail": "0.20 s", "text": "네"},
                {"source_id": "table/clips.tsv:80", "detail": "0.28 s", "text": "<b>아니요</b> & \"왜\""},
            ],
            "text says too much": [
                {"source_id": "zeroth/train:7", "detail": "17.4 syll./s", "text": "그래서 그 사람이 말하기를 " * 40},
            ],
            "empty text": [{"source_id": "table/clips.tsv:90", "detail": "", "text": ""}],
        },
        "settings": {"source": ["table", "zeroth-korean"], "min_seconds": 0.3, "max_seconds": 30.0, "limit": 0,
                     "strip_caption_marks": False, "split": "0.8,0.1,0.1", "split_seed": 42, "audio_root": None},
        "made": "2026-11-22 03:10",
    }  # fmt: skip


def without_anything() -> dict[str, Any]:
    """The figures of a preparation that found nothing: all numbers zero, all mappings and lists empty."""
    split = {"clips": 0, "hours": 0.0, "speakers": 0, "sentences": 0, "characters": 0}
    no_clips = {"edges": [0, 1, 2], "train": [0, 0], "validation": [0, 0], "test": [0, 0]}
    no_clips |= {"mean": 0, "median": 0, "p95": 0}
    return {
        "rows_read": 0,
        "rows_kept": 0,
        "rows_dropped": 0,
        "reasons": {},
        "splits": {"train": split, "validation": split, "test": split},
        "sources": {},
        "shared": {"speakers": 0, "sentences": 0},
        "duration_s": no_clips,
        "syllables_per_second": no_clips,
        "characters": {"distinct": 0, "kinds": {}, "most": [], "rarest": [], "unseen": []},
        "examples": {},
        "settings": {},
        "made": "2026-11-22 03:10",
    }


class Page(HTMLParser):
    """What a browser would make of a page, as far as these tests ask.

    Attributes:
        tags: every start and end tag, with the names of its attributes.
        texts: every text with the open elements around it, the titles of bars included, styles left out.
        elements: name, attributes and open elements around of every start tag.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.elements: list[tuple[str, dict[str, str], str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], "an element is left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.tags.append(f"{tag} {' '.join(named)}")
        self.elements.append((tag, named, " ".join(self.open)))
        if tag not in VOID:
            self.open.append(f"{tag}.{named.get('class', '')}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().startswith(f"{tag}.")
        self.tags.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        if "style." not in self.open and data.strip():
            self.texts.append((data, " ".join(self.open)))

    def text(self, inside: str = "") -> str:
        """Return what is read inside an element, with single spaces."""
        return " ".join(" ".join(data for data, around in self.texts if inside in around).split())

    def bars(self, inside: str) -> list[dict[str, float]]:
        """Return the geometry of the bars inside an element."""
        return [
            {name: float(value.rstrip("%")) for name, value in named.items() if name in ("x", "y", "width", "height")}
            for tag, named, around in self.elements
            if tag == "rect" and named.get("class") == "bar" and inside in around
        ]


# One page that stands alone


def test_the_page_asks_for_nothing_outside_itself() -> None:
    html = report_html(sample())
    assert html.lower().startswith("<!doctype html>")
    for word in ("http://", "https://", "//", "src=", "srcset", "url(", "@import", "@font-face", "<script", "<link"):
        assert word not in html, word
    # Were it to ask by mistake one day, the browser is told to refuse.
    assert "default-src 'none'" in html
    links = [named["href"] for tag, named, _ in Page(html).elements if "href" in named]
    assert links == ["#examples"]
    assert [name for _, named, _ in Page(html).elements for name in named if name.startswith("on")] == []


def test_the_page_says_what_it_is_in_both_languages() -> None:
    page = Page(report_html(sample()))
    assert {"utf-8"} == {named["charset"] for _, named, _ in page.elements if "charset" in named}
    assert [named["lang"] for tag, named, _ in page.elements if tag == "html"] == ["en"]
    for english, korean in {
        "Data report": "데이터 보고서",
        "Splits": "데이터 분할",
        "Dropped rows": "제외한 행",
    }.items():
        assert f"{english} {korean}" in page.text("h")


# Every figure


def numbered(value: Any, seen: list[float]) -> Any:
    """Return figures of the same shape with numbers that are all different and rise, and note them in `seen`."""
    if isinstance(value, dict):
        return {name: numbered(part, seen) for name, part in value.items()}
    if isinstance(value, list):
        return [numbered(part, seen) for part in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    seen.append(1001 + len(seen) + (0.25 if isinstance(value, float) else 0))
    return seen[-1]


def test_every_number_is_told() -> None:
    figures, seen = sample(), []
    knobs = figures.pop("settings")
    page = Page(report_html(numbered(figures, seen) | {"settings": knobs}))
    told = set(re.findall(r"[\d,.]*\d", page.text()))
    assert len(seen) > 250
    assert [number for number in seen if f"{number:,}" not in told] == []


def test_settings_are_told_as_they_would_be_written() -> None:
    text = Page(report_html(sample())).text("dl.settings")
    for words in ("source table, zeroth-korean", "min_seconds 0.3", "strip_caption_marks false", "split_seed 42"):
        assert words in text
    assert "audio_root –" in text


def test_every_text_is_told() -> None:
    figures = sample()
    text = Page(report_html(figures)).text()
    words = [*figures["reasons"], *figures["sources"], *figures["characters"]["kinds"], figures["made"]]
    words += [row[key] for rows in figures["examples"].values() for row in rows for key in ("source_id", "detail")]
    words += [*figures["characters"]["unseen"], "U+200B", "◌\u0301", "😀", '<b>아니요</b> & "왜"']
    assert [word for word in words if word not in text] == []


def test_rows_read_are_kept_and_dropped() -> None:
    assert (
        Page(report_html(sample())).text("div.sum").startswith("984 rows read 읽은 행 = 950 kept 남긴 행 + 34 dropped")
    )


def test_a_sum_that_does_not_hold_is_not_claimed() -> None:
    page = Page(report_html(sample() | {"rows_kept": 949}))
    assert "984 rows read 읽은 행 ≠ 949" in page.text("div.sum")
    assert "fault of the suite" in page.text("li.warning")


def test_few_hours_are_not_told_as_none() -> None:
    figures = sample()
    figures["splits"]["test"]["hours"] = 0.0021
    assert "0.0021" in Page(report_html(figures)).text("table.")


def test_a_long_text_is_cut_and_its_length_is_told() -> None:
    figures = sample()
    figures["examples"]["too short"][0]["text"] = "가" * 12_000
    text = Page(report_html(figures)).text("ul.examples")
    assert "… (12,000 characters)" in text
    assert text.count("가") < 1000


# Plots


def test_heights_in_a_histogram_are_proportional_to_counts() -> None:
    figures = sample()
    page = Page(report_html(figures))
    for name in ("train", "validation", "test"):
        counts = figures["duration_s"][name] + figures["syllables_per_second"][name]
        bars = page.bars(f"figure.{name}")
        assert len(bars) == len(counts) == 60
        for part in (slice(0, 30), slice(30, 60)):
            unit = max(bar["height"] for bar in bars[part]) / max(counts[part])
            for bar, count in zip(bars[part], counts[part], strict=True):
                assert bar["height"] == pytest.approx(unit * count, abs=0.01)
                assert bar["y"] + bar["height"] == pytest.approx(120, abs=0.02)


def test_axes_have_round_numbers_and_units() -> None:
    page = Page(report_html(sample()))
    told = " ".join(
        text for text, around in page.texts if "figure.train" in around and around.split()[-1][:4] == "text"
    )
    lengths, rates = told.split(" seconds ")
    assert lengths == "clips 0 50 100 150 0 5 10 15 20 25 30"
    assert rates == "clips 0 20 40 60 0 5 10 15 syllables per second"


@REPEATABLE
@given(
    counts=st.lists(st.integers(0, 10**9), max_size=40),
    start=st.floats(0, 100),
    step=st.floats(0.01, 100),
    median=st.none() | st.floats(-10, 1000),
)
def test_any_histogram_stays_inside_its_drawing(
    counts: list[int], start: float, step: float, median: float | None
) -> None:
    edges = [start + n * step for n in range(len(counts) + 1)]
    figures = sample() | {"duration_s": {"edges": edges, "train": counts, "median": median, "mean": None, "p95": 0}}
    page = Page(report_html(figures))
    assert len(page.bars("figure.train")) == len(counts) + 30
    for tag, named, around in page.elements:
        if "svg.histogram" in around and tag in ("rect", "line", "text"):
            left, top = (float(named.get(name, named.get(f"{name}1", "0"))) for name in ("x", "y"))
            right = left + float(named.get("width", "0")), float(named.get("x2", "0"))
            bottom = top + float(named.get("height", "0")), float(named.get("y2", "0"))
            assert 0 <= left <= max(right) <= 280
            assert 0 <= top <= max(bottom) <= 158


def test_lengths_of_horizontal_bars_are_proportional_to_counts() -> None:
    page = Page(report_html(sample()))
    assert [bar["width"] for bar in page.bars("ul.bars reasons")] == [100, 75, 58.33, 25, 25]
    assert page.bars("ul.bars kinds")[-1]["width"] == 0


def test_the_parts_of_a_bar_fill_it() -> None:
    page = Page(report_html(sample()))
    assert [bar["x"] for bar in page.bars("svg.stack g.validation")] == [80]
    assert sum(
        bar["width"] for name in ("kept", "dropped") for bar in page.bars(f"svg.stack g.{name}")
    ) == pytest.approx(100, abs=0.02)


def test_every_bar_has_a_title() -> None:
    page = Page(report_html(sample()))
    bars = page.bars("")
    titles = [text for text, around in page.texts if around.split()[-1].startswith("title") and "svg" in around]
    assert len(titles) == len(bars) > 200
    assert "too short: 12 rows (35.3 %)" in titles
    assert "Hangul: 10,234 characters (83.1 %)" in titles
    assert "punctuation: 3 characters (< 0.1 %)" in titles
    assert f"2–3 s: {sample()['duration_s']['train'][2]} clips (21.3 %)" in titles


# Warnings


def change(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def changed(figures: dict[str, Any]) -> None:
        for name in path[:-1]:
            figures = figures[name]
        figures[path[-1]] = to

    return changed


def speakers(train: int, validation: int, test: int, shared: int) -> Callable[[dict[str, Any]], None]:
    def changed(figures: dict[str, Any]) -> None:
        figures["shared"]["speakers"] = shared
        for name, count in {"train": train, "validation": validation, "test": test}.items():
            figures["splits"][name]["speakers"] = count

    return changed


WARNED = {
    "one sentence": (change("shared", "sentences", to=1), "1 sentence of train is also in validation or test."),
    "sentences": (change("shared", "sentences", to=1200), "1,200 sentences of train are also in"),
    "speakers": (change("shared", "speakers", to=2), "2 speakers of train are also in validation or test."),
    "empty train": (change("splits", "train", "clips", to=0), "The train split is empty."),
    "empty validation": (change("splits", "validation", "clips", to=0), "The validation split is empty."),
    "empty test": (change("splits", "test", to={}), "The test split is empty."),
    "few": (change("splits", "test", "clips", to=29), "The test split has only 29 clips."),
    "one": (change("splits", "train", "clips", to=1), "The train split has only 1 clip."),
    "no speakers": (speakers(0, 0, 0, 0), "No speaker is known."),
    "one speaker": (speakers(1, 1, 1, 1), "No split has more than one known speaker."),
    "a speaker in train alone": (speakers(1, 0, 0, 0), "No split has more than one known speaker."),
}


@pytest.mark.parametrize("trouble", WARNED)
def test_what_is_wrong_is_said(trouble: str) -> None:
    figures = sample()
    figures["shared"]["sentences"] = 0
    spoil, words = WARNED[trouble]
    spoil(figures)
    assert words in Page(report_html(figures)).text("li.warning")


def test_good_splits_get_no_warning() -> None:
    figures = sample()
    figures["shared"]["sentences"] = 0
    for name in figures["splits"]:
        figures["splits"][name]["clips"] = 30
    page = Page(report_html(figures))
    assert page.text("li.warning") == ""
    assert page.text("li.well").count("✓") == 3


def test_three_speakers_in_three_splits_are_enough() -> None:
    figures = sample()
    speakers(1, 1, 1, 0)(figures)
    assert "speaker" not in Page(report_html(figures)).text("li.warning")


@pytest.mark.parametrize("unknown", [speakers(0, 0, 0, 0), speakers(1, 0, 0, 0)])
def test_nothing_is_well_that_could_not_be_looked_at(unknown: Callable[[dict[str, Any]], None]) -> None:
    figures = sample()
    unknown(figures)
    assert "speaker" not in Page(report_html(figures)).text("li.well")
    assert Page(report_html(without_anything())).text("li.well") == ""


# Whatever comes


@pytest.mark.parametrize("figures", [without_anything(), {}], ids=["zeroes", "no figures"])
def test_nothing_at_all_is_a_page_too(figures: dict[str, Any]) -> None:
    page = Page(report_html(figures))
    assert "0 rows read 읽은 행 = 0 kept 남긴 행 + 0 dropped" in page.text("div.sum")
    assert page.text("li.warning").count("split is empty") == 3
    assert page.text("svg.histogram").count("no clips") == 6
    assert "No row was dropped." in page.text()
    assert "nan" not in page.text().lower()


@pytest.mark.parametrize("part", [name for name, value in sample().items() if isinstance(value, dict)])
def test_any_part_may_be_empty(part: str) -> None:
    assert "rows read" in Page(report_html(sample() | {part: {}})).text()


def with_texts(texts: list[str]) -> dict[str, Any]:
    """Return the figures with texts in every place that can hold one; names get a number, to be different."""
    figures = without_anything()
    name, reason, detail, text, value, char = texts
    figures["sources"] = {f"{n}{name}": source for n, source in enumerate(sample()["sources"].values())}
    figures["reasons"] = {f"{n}{reason}": count for n, count in enumerate([5, 3])}
    figures["examples"] = {f"0{reason}": [{"source_id": name, "detail": detail, "text": text}]}
    figures["settings"] = {f"{n}{name}": value for n, value in enumerate([value, [value, value], {value: value}])}
    figures["characters"] |= {"kinds": {reason: 3}, "most": [[char, 2]], "rarest": [char], "unseen": [char, text]}
    return figures


MEAN = ["</title><script>alert(1)</script>", "</svg><img src=x onerror=alert(1)>", '" onmouseover="alert(1)']
MEAN += ["{{ 7 * 7 }}{% raw %}", "<!-- ", "]]>", "&lt;b&gt;&#60;", "</style>", "'\"`=<>&", "\u202e\u2066", "가" * 2000]
MEAN += ["\x00\x0b\x1b[31m\x85", "\ud800", "\u2028\r\n", "<", "👩‍👩‍👧", ""]
ANY_TEXT = st.sampled_from(MEAN) | st.text(max_size=30) | st.text("<>\"'&/!-= ascript{}%#;", max_size=30)


@pytest.fixture(scope="module")
def harmless() -> list[str]:
    """The tags of a page with plain texts."""
    return Page(report_html(with_texts(["harmless"] * 6))).tags


@REPEATABLE
@given(texts=st.lists(ANY_TEXT, min_size=6, max_size=6))
@example(texts=MEAN[:6])
@example(texts=MEAN[6:12])
@example(texts=MEAN[-6:])
def test_no_text_breaks_out(harmless: list[str], texts: list[str]) -> None:
    html = report_html(with_texts(texts))
    html.encode()
    assert Page(html).tags == harmless


@pytest.mark.parametrize("text", MEAN[:9])
def test_a_text_is_shown_as_it_stands(text: str) -> None:
    page = Page(report_html(with_texts([text] * 6)))
    for place in ("ul.examples", "ul.bars reasons", "table.sources", "dl.settings", "ul.chips"):
        assert text in page.text(place), place
