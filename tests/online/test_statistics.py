"""Statistics: figures that add up, for any rows, and that JSON holds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.online.judging import short_hash
from asr.online.report import report_html
from asr.online.splitting import NONE, SPLITS, TEST, TRAIN, VALIDATION, Clips, Decision
from asr.online.statistics import EXAMPLES, Statistics

REPEATABLE = settings(derandomize=True, deadline=None, database=None, max_examples=30)


def clips_of(rows: list[dict[str, Any]]) -> tuple[Clips, Decision]:
    """Columns of rows with text, speaker, seconds, syllables and split; equal names have equal keys."""

    def numbers(values: list[Any], kind: type = np.int64) -> np.ndarray:
        return np.array(values, kind)

    keys = {
        name: numbers([0 if row[name] == "" else short_hash(row[name].encode()) for row in rows])
        for name in ("text", "speaker")
    }
    split = numbers([row["split"] for row in rows], np.int8)
    nothing = np.zeros(len(rows), np.int64)
    seconds, syllables = (
        numbers([row["seconds"] for row in rows], np.float32),
        numbers([row["syllables"] for row in rows]),
    )
    clips = Clips(nothing, nothing, keys["speaker"], nothing, keys["text"], nothing, split, seconds, syllables)
    return clips, Decision(split, nothing, nothing - 1)


def row(
    split: int, text: str = "가", speaker: str = "kim", seconds: float = 2.0, syllables: int = 8, source: str = "a"
) -> Any:
    return {
        "split": split,
        "text": text,
        "speaker": speaker,
        "seconds": seconds,
        "syllables": syllables,
        "source": source,
    }


def figures_of(rows: list[dict[str, Any]], settings: dict[str, Any] | None = None) -> dict[str, Any]:
    statistics = Statistics()
    for number, one in enumerate(rows):
        if one["split"] == NONE:
            statistics.drop(one["source"], f"a.tsv:{number}", "duplicate audio", "see a.tsv:0", one["text"])
        else:
            statistics.keep(SPLITS[one["split"]], one["source"], one["text"], one["seconds"])
    return statistics.figures(*clips_of(rows), settings or {})


def test_splits_are_described() -> None:
    rows = [row(TRAIN, "가 나", "kim", 3600), row(TRAIN, "가 나", "lee", 1800), row(TEST, "다", "", 1800), row(NONE)]
    splits = figures_of(rows)["splits"]
    assert splits == {
        "train": {"clips": 2, "hours": 1.5, "speakers": 2, "sentences": 1, "characters": 6},
        "validation": {"clips": 0, "hours": 0.0, "speakers": 0, "sentences": 0, "characters": 0},
        "test": {"clips": 1, "hours": 0.5, "speakers": 0, "sentences": 1, "characters": 1},
    }


def test_sources_are_described() -> None:
    rows = [row(TRAIN, seconds=1800), row(NONE), row(NONE, source="b"), row(TEST, source="c", seconds=36)]
    assert figures_of(rows)["sources"] == {
        "a": {"read": 2, "kept": 1, "dropped": 1, "hours": 0.5, "splits": {"train": 1, "validation": 0, "test": 0}},
        "b": {"read": 1, "kept": 0, "dropped": 1, "hours": 0.0, "splits": {"train": 0, "validation": 0, "test": 0}},
        "c": {"read": 1, "kept": 1, "dropped": 0, "hours": 0.01, "splits": {"train": 0, "validation": 0, "test": 1}},
    }


def test_what_both_sides_share_is_counted() -> None:
    rows = [row(TRAIN, "가", "kim"), row(TRAIN, "나", ""), row(VALIDATION, "나", ""), row(TEST, "다", "kim")]
    assert figures_of(rows)["shared"] == {"speakers": 1, "sentences": 1}


def test_lengths_and_rates_are_distributed() -> None:
    rows = [row(TRAIN, seconds=0.5, syllables=1), row(TEST, seconds=30.0, syllables=120), row(NONE, seconds=9.0)]
    figures = figures_of(rows)
    assert figures["duration_s"]["train"][0] == 1
    assert figures["duration_s"]["test"][29] == 1
    assert (figures["duration_s"]["mean"], figures["duration_s"]["median"]) == (15.25, 15.25)
    assert figures["syllables_per_second"]["train"][4] == 1
    assert figures["syllables_per_second"]["test"][8] == 1


def test_characters_are_counted() -> None:
    rows = [row(TRAIN, "가가 A1!"), row(TEST, "힣 가")]
    characters = figures_of(rows)["characters"]
    assert characters["distinct"] == 5
    assert characters["kinds"] == {"Hangul": 4, "space": 2, "Latin": 1, "digit": 1, "punctuation": 1}
    assert characters["most"][0] == ["가", 3]
    assert characters["rarest"] == sorted("A1!힣")
    assert characters["unseen"] == ["힣"], "what no training clip teaches"


def test_a_few_examples_of_each_reason_are_shown() -> None:
    figures = figures_of([row(NONE, f"문장 {n}") for n in range(20)])
    assert figures["reasons"] == {"duplicate audio": 20}
    assert [example["text"] for example in figures["examples"]["duplicate audio"]] == [
        f"문장 {n}" for n in range(EXAMPLES)
    ]


ANY_ROW = st.builds(
    row,
    split=st.sampled_from([NONE, TRAIN, VALIDATION, TEST]),
    text=st.text(max_size=10),
    speaker=st.sampled_from(["", "kim", "lee"]),
    seconds=st.floats(0.125, 30, width=32),
    syllables=st.integers(0, 400),
    source=st.sampled_from(["a", "b"]),
)


@given(st.lists(ANY_ROW, max_size=30))
@REPEATABLE
def test_figures_of_any_rows_add_up_and_are_json(rows: list[dict[str, Any]]) -> None:
    figures = figures_of(rows, {"split": "0.8,0.1,0.1"})
    kept = [one for one in rows if one["split"] != NONE]
    assert figures["rows_read"] == len(rows)
    assert figures["rows_kept"] == len(kept) == sum(split["clips"] for split in figures["splits"].values())
    assert figures["rows_dropped"] == len(rows) - len(kept) == sum(figures["reasons"].values())
    for count, total in (("read", len(rows)), ("kept", len(kept)), ("dropped", len(rows) - len(kept))):
        assert sum(source[count] for source in figures["sources"].values()) == total
    for name in ("duration_s", "syllables_per_second"):
        distribution = figures[name]
        assert sum(sum(distribution[split]) for split in SPLITS) == len(kept), "what lies beyond the edges is at them"
        assert all(len(distribution[split]) == len(distribution["edges"]) - 1 for split in SPLITS)
    assert sum(figures["characters"]["kinds"].values()) == sum(len(one["text"]) for one in kept)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert report_html(figures)


@pytest.mark.parametrize("rows", [[], [row(NONE)]])
def test_nothing_kept_has_no_mean(rows: list[dict[str, Any]]) -> None:
    figures = figures_of(rows)
    assert "mean" not in figures["duration_s"]
    assert figures["splits"]["train"]["clips"] == 0
