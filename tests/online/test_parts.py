"""Parts: verdicts on the disk, kept as long as the rows are the same, and whatever the rows hold."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.online import parts as parts_module
from asr.online.judging import Verdict, unjudged
from asr.online.parts import Parts, read_columns
from asr.online.sources.row import Row

REPEATABLE = settings(derandomize=True, deadline=None, database=None)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "PART_ROWS", 4)


class Judging:
    """Keeps every row, and counts them."""

    def __init__(self) -> None:
        self.judged: list[str] = []

    def __call__(self, rows: Iterable[Row]) -> Iterator[Verdict]:
        for row in rows:
            self.judged.append(row.source_id)
            yield replace(unjudged(row), text=row.text, clip=row.text.encode(), duration_s=1.0)


def labelled(verdicts: list[Verdict]) -> list[tuple[Verdict, list[int]]]:
    return [(verdict, [len(verdict.text)]) for verdict in verdicts]


def rows(*texts: str) -> list[Row]:
    return [Row("test", f"test:{number}", b"sound", text) for number, text in enumerate(texts)]


def fill(folder: Path, given: Iterable[Row], limits: dict[str, Any] | None = None) -> tuple[Parts, list[str], int]:
    """Bring parts up to the rows; return them, the rows that had to be judged, and how many were counted."""
    parts, judging, counted = Parts(folder, limits or {}), Judging(), []
    parts.fill(given, judging, labelled, counted.append)
    return parts, judging.judged, sum(counted)


def texts(parts: Parts) -> list[str]:
    return [text for file in parts.files() for text in read_columns(file, ["text"])["text"].to_pylist()]


TEN = rows(*"가나다라마바사아자차")


def test_rows_lie_in_parts_in_their_order(tmp_path: Path) -> None:
    parts, judged, counted = fill(tmp_path, TEN)
    assert [read_columns(file).num_rows for file in parts.files()] == [4, 4, 2]
    assert texts(parts) == [row.text for row in TEN]
    assert (len(judged), counted) == (10, 10)


def test_what_is_whole_is_not_judged_again(tmp_path: Path) -> None:
    """The last part may be short because the run ended there, or because there were no more rows: it is done again."""
    fill(tmp_path, TEN)
    parts, judged, counted = fill(tmp_path, TEN)
    assert judged == ["test:8", "test:9"]
    assert counted == 10
    assert texts(parts) == [row.text for row in TEN]


@pytest.mark.parametrize("at", range(11))
def test_an_interruption_loses_less_than_a_part(tmp_path: Path, at: int) -> None:
    def interrupted() -> Iterator[Row]:
        yield from TEN[:at]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, interrupted())
    parts, judged, counted = fill(tmp_path, TEN)
    assert len(judged) == 10 - at // 4 * 4
    assert counted == 10
    assert texts(parts) == [row.text for row in TEN]


@given(before=st.lists(st.sampled_from("가나다"), max_size=14), after=st.lists(st.sampled_from("가나다"), max_size=14))
@settings(REPEATABLE, max_examples=60)
def test_whatever_changed_between_the_parts_hold_the_rows_of_now(
    tmp_path_factory: pytest.TempPathFactory, before: list[str], after: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    fill(folder, rows(*before))
    parts, _, counted = fill(folder, rows(*after))
    assert texts(parts) == after
    assert counted == len(after)
    fresh, _, _ = fill(folder / "fresh", rows(*after))
    assert [file.read_bytes() for file in parts.files()] == [file.read_bytes() for file in fresh.files()]


def test_only_what_follows_a_change_is_judged_again(tmp_path: Path) -> None:
    fill(tmp_path, TEN)
    _, judged, _ = fill(tmp_path, [*TEN[:5], replace(TEN[5], text="하"), *TEN[6:]])
    assert judged == [f"test:{number}" for number in range(4, 10)]


def test_other_settings_begin_anew(tmp_path: Path) -> None:
    fill(tmp_path, TEN, {"min_seconds": 0.3})
    parts, judged, _ = fill(tmp_path, TEN, {"min_seconds": 0.5})
    assert len(judged) == 10
    assert list(tmp_path.iterdir()) == [parts.folder], "parts of other settings would fill the disk"


def test_a_part_that_was_cut_off_is_no_part(tmp_path: Path) -> None:
    """It is written beside its place, and renamed when it is whole."""
    parts, _, _ = fill(tmp_path, TEN)
    (parts.folder / ".part.tmp").write_bytes(parts.files()[0].read_bytes()[:100])
    assert len(Parts(tmp_path, {}).files()) == 3
    assert texts(fill(tmp_path, TEN)[0]) == [row.text for row in TEN]


def test_parts_behind_a_gap_are_not_used(tmp_path: Path) -> None:
    parts, _, _ = fill(tmp_path, TEN)
    parts.files()[1].unlink()
    again, judged, _ = fill(tmp_path, TEN)
    assert len(judged) == 6
    assert texts(again) == [row.text for row in TEN]


def test_nothing_that_is_not_ours_is_removed(tmp_path: Path) -> None:
    """Somebody's folder may be called bundle.work, too."""
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "only copy.wav").touch()
    parts, _, _ = fill(tmp_path, TEN)
    parts.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["recordings"]
    assert (tmp_path / "recordings" / "only copy.wav").exists()


def test_removed_parts_leave_no_folder(tmp_path: Path) -> None:
    parts, _, _ = fill(tmp_path / "work", TEN)
    parts.remove()
    assert list(tmp_path.iterdir()) == []


def test_some_columns_are_read_without_the_others(tmp_path: Path) -> None:
    parts, _, _ = fill(tmp_path, TEN)
    table = read_columns(parts.files()[0], ["text", "key"])
    assert sorted(table.column_names) == ["key", "text"]
    assert table["text"].to_pylist() == ["가", "나", "다", "라"]


def test_keys_tell_speakers_of_two_sources_apart(tmp_path: Path) -> None:
    """And a speaker from a group of the same name; 0 stands for none."""
    same = [Row(source, "1", b"", "가", speaker="1", group="1") for source in ("a", "b")]
    parts, _, _ = fill(tmp_path, [*same, Row("a", "2", b"", "가")])
    table = read_columns(parts.files()[0], ["source_key", "speaker_key", "group_key", "text_key"]).to_pydict()
    keys = [table["speaker_key"][0], table["speaker_key"][1], table["group_key"][0], table["group_key"][1]]
    assert len(set(keys)) == 4
    assert (table["speaker_key"][2], table["group_key"][2]) == (0, 0)
    assert table["source_key"][0] == table["source_key"][2] != table["source_key"][1]
    assert len(set(table["text_key"])) == 1


ANY = st.text(st.characters(codec=None), max_size=12)
ANY_PATH = ANY.map(lambda name: Path(f"clips/{name}.wav"))


@given(source_id=ANY, speaker=ANY, group=ANY, audio=ANY_PATH, text=ANY | st.just("가" * 100_000), detail=ANY)
@settings(REPEATABLE, max_examples=60)
def test_any_row_can_be_written(
    tmp_path_factory: pytest.TempPathFactory,
    source_id: str,
    speaker: str,
    group: str,
    audio: Path,
    text: str,
    detail: str,
) -> None:
    """Names of files hold bytes of other encodings, which Python reads as halves of surrogate pairs."""
    row = Row("test", source_id, audio, text, "train", speaker, group, "unreadable audio", detail)
    parts = Parts(tmp_path_factory.mktemp("parts"), {})
    verdict = replace(unjudged(row), reason=row.refused, detail=row.detail)
    parts.fill([row], lambda given: (verdict for _ in given), labelled, lambda count: None)
    (found,) = itertools.chain(*(read_columns(file).to_pylist() for file in parts.files()))
    given = {"source_id": source_id, "speaker": speaker, "detail": detail, "name": audio.stem, "raw_text": text[:2000]}
    assert {name: found[name] for name in given} == {name: escaped(value) for name, value in given.items()}
    assert found["key"] == verdict.key


def escaped(text: str) -> str:
    """The text, with halves of pairs spelled out, as \\udcb0."""
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
