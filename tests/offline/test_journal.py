"""The journal: what was decoded once is kept through any end, and never taken for something else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from asr.offline.journal import Entry, Journal, open_journal
from tests.conftest import ROOT
from utils import UserError

PLAN = [[(2, 0), (0, 0)], [(1, 0), (1, 1)], [(3, 0)]]
TEXTS = [["셋", "하나"], ["둘", "의 뒤"], [""]]
ABOUT = {"weights": {"a": "1"}, "window": "padded"}


def filled(folder: Path, batches: int = 3) -> Journal:
    """A journal whose writer was stopped after so many batches."""
    journal = open_journal(folder, ABOUT)
    try:
        with journal.going_on(PLAN):
            for pieces, texts in list(zip(PLAN, TEXTS, strict=True))[:batches]:
                journal.add(Entry(pieces, texts, 0.5))
            if batches < 3:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    return journal


def file_of(journal: Journal) -> Path:
    return journal.folder / "texts.jsonl"


def test_texts_come_back_in_the_order_of_the_clips_with_their_parts_joined(tmp_path):
    filled(tmp_path)
    again = open_journal(tmp_path, ABOUT)
    assert again.complete
    assert again.texts(4) == ["하나", "둘 의 뒤", "셋", ""]
    assert again.seconds == 1.5


def test_a_broken_off_journal_goes_on_where_it_was(tmp_path):
    filled(tmp_path, batches=1)
    journal = open_journal(tmp_path, ABOUT)
    assert not journal.complete
    with journal.going_on(PLAN):
        assert [entry.texts for entry in journal.entries] == TEXTS[:1]
        for pieces, texts in zip(PLAN[1:], TEXTS[1:], strict=True):
            journal.add(Entry(pieces, texts, 0.5))
    assert file_of(journal).read_bytes() == file_of(filled(tmp_path / "whole")).read_bytes()


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_that_a_crash_cut_off_counts_as_not_there(tmp_path, cut):
    journal = filled(tmp_path, batches=2)
    content = file_of(journal).read_bytes()
    file_of(journal).write_bytes(content[:-cut])
    found = open_journal(tmp_path, ABOUT)
    assert not found.complete
    assert [entry.texts for entry in found.entries] in (TEXTS[:1], TEXTS[:2])
    assert len(found.entries) == (2 if cut == 1 else 1), "without its line feed alone a line is whole"
    with found.going_on(PLAN):
        kept = file_of(found).read_bytes()
        assert content.startswith(kept)
        assert kept.endswith(b"\n"), "what comes next begins a line of its own"


@pytest.mark.parametrize("damage", ['{"pieces": [[0, 0]], "texts": [], "seconds": 1}', "[]", '{"pieces": 3}', "가"])
def test_a_damaged_line_ends_what_is_believed(tmp_path, damage):
    journal = filled(tmp_path)
    lines = file_of(journal).read_text(encoding="utf-8").splitlines()
    file_of(journal).write_text("\n".join([lines[0], damage, *lines[2:]]) + "\n", encoding="utf-8")
    found = open_journal(tmp_path, ABOUT)
    assert not found.complete
    assert [entry.texts for entry in found.entries] == TEXTS[:1]


def test_batches_of_another_plan_are_decoded_again(tmp_path):
    filled(tmp_path, batches=2)
    journal = open_journal(tmp_path, ABOUT)
    with journal.going_on([PLAN[0], [(1, 0)], [(3, 0)]]):
        assert [entry.texts for entry in journal.entries] == TEXTS[:1]


def test_going_on_never_holds_less_than_before(tmp_path, monkeypatch):
    """A crash or a full disk at its very beginning costs nothing that was decoded."""
    filled(tmp_path, batches=2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("asr.offline.journal.write_atomically", full)
    with pytest.raises(OSError, match="No space"), open_journal(tmp_path, ABOUT).going_on(PLAN):
        pass
    assert [entry.texts for entry in open_journal(tmp_path, ABOUT).entries] == TEXTS[:2]


def test_what_the_texts_hang_on_is_the_journals_name(tmp_path):
    """Another weight, window or batch size: another journal; the order in which it is told does not matter."""
    first = filled(tmp_path)
    assert not open_journal(tmp_path, {**ABOUT, "window": "trimmed"}).entries
    assert open_journal(tmp_path, dict(reversed(ABOUT.items()))).complete
    assert json.loads((first.folder / "about.json").read_text(encoding="utf-8")).items() >= ABOUT.items()


def test_a_fresh_one_forgets(tmp_path):
    filled(tmp_path)
    assert not open_journal(tmp_path, ABOUT, fresh=True).entries
    assert not open_journal(tmp_path, ABOUT).complete


def test_two_processes_do_not_write_into_one(tmp_path):
    """The second would decode the same for nothing, and its lines would stand between those of the first."""
    journal = open_journal(tmp_path, ABOUT)
    code = f"""
from pathlib import Path
from asr.offline.lock import sole_use
with sole_use(Path({str(journal.folder)!r})):
    print("has it", flush=True)
    input()
"""
    journal.folder.mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=-1, stdout=-1, text=True)
    try:
        assert other.stdout.readline().strip() == "has it"
        with pytest.raises(UserError, match=f"in use by process {other.pid}"), journal.going_on(PLAN):
            pass
    finally:
        other.communicate("\n")
