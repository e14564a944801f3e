"""Splitting: repeats and leaks go, given splits stay, and what we divide has no group and no sentence on both sides."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asr.online.judging import short_hash
from asr.online.splitting import NONE, REASONS, SPLITS, TEST, TRAIN, VALIDATION, Clips, Decision, decide
from utils import UserError, log

REPEATABLE = settings(derandomize=True, deadline=None, database=None, max_examples=100)
SHARES = (0.8, 0.1, 0.1)
GIVEN = {"": NONE, "train": TRAIN, "validation": VALIDATION, "test": TEST}


def clip(text: str, speaker: str = "", given: str = "", audio: str = "", group: str = "", source: str = "a") -> Any:
    return {"text": text, "speaker": speaker, "given": given, "audio": audio, "group": group, "source": source}


def key(*parts: str) -> int:
    return short_hash("|".join(parts).encode()) if parts[-1] else 0


def columns(rows: list[Any]) -> Clips:
    """As preparation gathers them; audio that is not named is unlike any other."""
    named = [{**row, "audio": row["audio"] or f"sound of row {n}"} for n, row in enumerate(rows)]

    def numbers(name: str, *by: str) -> np.ndarray:
        return np.array([key(name, *(row[one] for one in (*by, name))) for row in named], np.int64)

    return Clips(
        row=np.arange(len(rows)),
        source=numbers("source"),
        speaker=numbers("speaker", "source"),
        group=numbers("group", "source"),
        text=numbers("text"),
        audio=numbers("audio"),
        given=np.array([GIVEN[row["given"]] for row in rows], np.int8),
        seconds=np.ones(len(rows), np.float32),
        syllables=np.ones(len(rows), np.int32),
    )


def decided(
    rows: list[Any], seed: int = 42, keep_repeats: bool = False, shares: tuple[float, ...] = SHARES
) -> Decision:
    decision = decide(columns(rows), shares, seed, keep_repeats)
    dropped = decision.split == NONE
    assert np.array_equal(dropped, decision.reason != 0)
    assert np.array_equal(dropped, decision.other >= 0)
    assert not (decision.other == np.arange(len(rows))).any()
    return decision


def outcome(rows: list[Any], **options: Any) -> list[str]:
    """For each row its split, or the reason and the row because of which it is dropped."""
    decision = decided(rows, **options)
    return [
        SPLITS[split] if split != NONE else f"{REASONS[reason]}: {other}"
        for split, reason, other in zip(decision.split, decision.reason, decision.other, strict=True)
    ]


@contextmanager
def messages() -> Iterator[list[str]]:
    """What is logged inside the block."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    listener, level = Listener(), log.level
    log.addHandler(listener)
    log.setLevel(logging.INFO)
    try:
        yield found
    finally:
        log.removeHandler(listener)
        log.setLevel(level)


def shared(rows: list[Any], decision: Decision, *names: str) -> set[tuple[str, ...]]:
    """Values (of known speakers, groups) that stand in train and also on the held-out side."""
    values = [tuple(row[name] for name in names) for row in rows]
    train = {value for value, split in zip(values, decision.split, strict=True) if split == TRAIN}
    held_out = {value for value, split in zip(values, decision.split, strict=True) if split in (VALIDATION, TEST)}
    return {value for value in train & held_out if value[-1]}


# Repeats


def test_of_equal_audio_the_first_stays() -> None:
    rows = [clip(f"문장 {n}", "kim", "train", audio) for n, audio in enumerate(["x", "y", "x", "x"])]
    assert outcome(rows) == ["train", "train", "duplicate audio: 0", "duplicate audio: 0"]


def test_of_a_sentence_that_its_speaker_says_again_the_first_stays() -> None:
    rows = [clip("가", "kim", "train"), clip("가", "lee", "train"), clip("가", "kim", "train")]
    assert outcome(rows) == ["train", "train", "duplicate text of the speaker: 0"]
    assert outcome(rows, keep_repeats=True) == ["train"] * 3


def test_unknown_speakers_are_not_one_speaker() -> None:
    assert outcome([clip("가", "", "train"), clip("가", "", "train")]) == ["train", "train"]


def test_equal_audio_goes_even_where_repeats_are_kept() -> None:
    rows = [clip("가", "kim", "train", "x"), clip("나", "lee", "train", "x")]
    assert outcome(rows, keep_repeats=True) == ["train", "duplicate audio: 0"]


def test_speakers_of_two_sources_are_two_people() -> None:
    rows = [clip("가", "1", "train", source="a"), clip("가", "1", "train", source="b")]
    assert outcome(rows) == ["train", "train"]


def test_equal_audio_of_two_sources_is_one_clip() -> None:
    rows = [clip("가", "1", "train", "x", source="a"), clip("가", "1", "train", "x", source="b")]
    assert outcome(rows) == ["train", "duplicate audio: 0"]


# Leaks between given splits


def test_audio_that_is_also_held_out_leaves_the_training_side() -> None:
    """Whichever comes first."""
    rows = [clip("가", "kim", "train", "x"), clip("나", "lee", "test", "x"), clip("다", "park", "train", "y")]
    assert outcome(rows) == ["audio leaks from a held-out split: 1", "test", "train"]


def test_a_sentence_of_the_same_speaker_leaves_the_training_side() -> None:
    rows = [clip("가", "kim", "train"), clip("가", "kim", "validation"), clip("가", "lee", "train")]
    leak = "speaker and text leak from a held-out split: 1"
    assert outcome(rows) == [leak, "validation", "train"]
    assert outcome(rows, keep_repeats=True) == [leak, "validation", "train"]


def test_test_outranks_validation() -> None:
    rows = [clip("가", "kim", "validation", "x"), clip("가", "kim", "test", "x"), clip("나", "kim", "train")]
    assert outcome(rows) == ["audio leaks from a held-out split: 1", "test", "train"]


def test_a_row_without_a_split_does_not_become_a_leak() -> None:
    """Its twin is held out; with repeats kept it would be free to go to the training side."""
    rows = [clip("가", "kim", "test"), clip("가", "kim", ""), clip("나", "lee", "validation"), clip("다", "lee", "")]
    found = outcome(rows, keep_repeats=True)
    assert found == ["test", "speaker and text leak from a held-out split: 0", "validation", "train"]


def test_a_leak_may_come_from_another_source() -> None:
    rows = [clip("가", "1", "train", "x", source="a"), clip("가", "1", "test", "x", source="b")]
    assert outcome(rows)[0] == "audio leaks from a held-out split: 1"


# Given splits


def test_given_splits_stay() -> None:
    rows = [clip(f"문장 {n}", f"s{n % 3}", ["train", "validation", "test"][n % 3]) for n in range(30)]
    assert outcome(rows) == [row["given"] for row in rows]


def test_a_split_that_is_missing_is_taken_from_train() -> None:
    rows = [clip(f"문장 {n}", f"s{n}", "test" if n < 10 else "train") for n in range(110)]
    found = Counter(outcome(rows))
    assert found == {"train": 90, "test": 10, "validation": 10}
    assert outcome(rows)[:10] == ["test"] * 10


def test_a_split_without_a_share_is_not_made() -> None:
    rows = [clip(f"문장 {n}", f"s{n}") for n in range(20)]
    assert Counter(outcome(rows, shares=(0.9, 0.0, 0.1))) == {"train": 18, "test": 2}
    assert Counter(outcome(rows, shares=(1.0, 0.0, 0.0))) == {"train": 20}


def test_one_source_may_have_splits_and_another_none() -> None:
    whole = [clip(f"문장 {n}", f"s{n}", ["train", "validation", "test"][n % 3], source="a") for n in range(30)]
    without = [clip(f"다른 문장 {n}", f"s{n}", source="b") for n in range(100)]
    found = outcome([*whole, *without])
    assert found[:30] == [row["given"] for row in whole]
    assert Counter(found[30:]) == {"train": 80, "validation": 10, "test": 10}


def test_rows_without_a_split_in_a_source_that_has_all_train() -> None:
    rows = [clip(f"문장 {n}", f"s{n}", ["", "train", "validation", "test"][n % 4]) for n in range(12)]
    assert outcome(rows) == [row["given"] or "train" for row in rows]


# Splits of ours


def test_speakers_and_sentences_are_kept_apart() -> None:
    rows = [clip(f"{n % 20} 이 말한 {n}", f"s{n % 20}") for n in range(200)]
    decision = decided(rows)
    assert Counter(decision.split.tolist()) == {TRAIN: 160, VALIDATION: 20, TEST: 20}
    assert shared(rows, decision, "speaker") == shared(rows, decision, "text") == set()


def test_a_sentence_that_joins_two_speakers_keeps_them_together() -> None:
    rows = [clip(f"{n // 2} 번 문장 {n}", f"s{n}") for n in range(100)]
    rows += [clip(f"{n // 2} 둘의 문장", f"s{n}") for n in range(100)]
    decision = decided(rows)
    assert (decision.split != NONE).all()
    assert shared(rows, decision, "speaker") == shared(rows, decision, "text") == set()


def test_sentences_that_everybody_says_leave_the_training_side() -> None:
    """Speakers stay apart, and the few sentences that connect all of them are dropped from train."""
    rows = [clip(f"{n % 20} 이 말한 {n}", f"s{n % 20}") for n in range(200)]
    rows += [clip("안녕하세요", f"s{n}") for n in range(20)]
    with messages() as told:
        decision = decided(rows)
    assert shared(rows, decision, "speaker") == shared(rows, decision, "text") == set()
    assert 0 < np.count_nonzero(decision.split == NONE) <= 20
    assert {REASONS[reason] for reason in decision.reason[decision.split == NONE]} == {
        "sentence is in a held-out split"
    }
    for row in np.flatnonzero(decision.split == NONE):
        other = decision.other[row]
        assert rows[other]["text"] == rows[row]["text"]
        assert decision.split[other] > decision.split[row]
    assert any("same sentences" in message for message in told)


@pytest.mark.parametrize("speakers", [1, 2])
def test_a_single_speaker_is_divided_by_sentences(speakers: int) -> None:
    rows = [clip(f"문장 {n // 2}", f"s{n % speakers}") for n in range(200)]
    with messages() as told:
        decision = decided(rows, keep_repeats=True)
    assert Counter(decision.split.tolist()) == {TRAIN: 160, VALIDATION: 20, TEST: 20}
    assert shared(rows, decision, "text") == set()
    assert any("speakers are on both sides" in message for message in told)


def test_everybody_reads_the_same_sentences() -> None:
    """30 speakers and 3 sentences: sentences are kept apart, and no split is empty."""
    rows = [clip(f"문장 {sentence}", f"s{speaker}") for speaker in range(30) for sentence in range(3)]
    decision = decided(rows)
    assert Counter(decision.split.tolist()) == {TRAIN: 30, VALIDATION: 30, TEST: 30}


def test_without_speakers_sentences_are_divided_and_nothing_is_told_of_speakers() -> None:
    rows = [clip(f"문장 {n // 2}") for n in range(100)]
    with messages() as told:
        decision = decided(rows)
    assert Counter(decision.split.tolist()) == {TRAIN: 80, VALIDATION: 10, TEST: 10}
    assert shared(rows, decision, "text") == set()
    assert told == []


def test_a_group_outranks_the_speaker() -> None:
    """Two voices of one call stay on one side."""
    rows = [clip(f"문장 {n}", f"s{n % 2}", group=f"call {n // 4}") for n in range(200)]
    decision = decided(rows)
    assert Counter(decision.split.tolist()) == {TRAIN: 160, VALIDATION: 20, TEST: 20}
    assert shared(rows, decision, "group") == set()
    assert shared(rows, decision, "speaker")


def test_rows_without_a_group_are_divided_by_speaker() -> None:
    rows = [clip(f"문장 {n}", f"s{n // 4}", group=f"call {n // 4}" if n < 40 else "") for n in range(200)]
    decision = decided(rows)
    assert shared(rows, decision, "group") == shared(rows, decision, "speaker") == set()


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_groups_that_cannot_be_divided_are_the_users_error(groups: int) -> None:
    """Sentences instead would break what was asked for."""
    rows = [clip(f"문장 {n}", f"s{n}", group=f"g{n % groups}") for n in range(60)]
    with pytest.raises(UserError, match="--group-column") as raised:
        decided(rows)
    assert "--split" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_larger_shares_divide_few_groups() -> None:
    """As the message says."""
    rows = [clip(f"문장 {n}", f"s{n}", group=f"g{n % 3}") for n in range(60)]
    assert Counter(outcome(rows, shares=(0.4, 0.3, 0.3))) == {"train": 20, "validation": 20, "test": 20}


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_hardly_any_clips(count: int) -> None:
    found = Counter(outcome([clip(f"문장 {n}", f"s{n}") for n in range(count)]))
    assert found == [{}, {"train": 1}, {"train": 2}, {"train": 1, "validation": 1, "test": 1}][count]


# Whatever the rows

ROWS = st.lists(
    st.builds(
        clip,
        text=st.integers(0, 25).map(str),
        speaker=st.sampled_from(["", "s0", "s1", "s2", "s3", "s4", "s5", "s6"]),
        given=st.sampled_from(["", "", "train", "validation", "test"]),
        audio=st.sampled_from(["", "", "", "x", "y"]),
        source=st.sampled_from(["a", "b"]),
    ),
    max_size=60,
)
# Each speaker has between one and five clips of sentences of its own.
OWN_SENTENCES = st.lists(st.integers(1, 5), min_size=30, max_size=60).map(
    lambda counts: [clip(f"s{speaker} sagt {n}", f"s{speaker}") for speaker, n in _numbered(counts)]
)
MIXED = st.lists(
    st.builds(clip, text=st.integers(0, 40).map(str), speaker=st.integers(0, 12).map("s{}".format)),
    min_size=3,
    max_size=120,
)


def _numbered(counts: list[int]) -> list[tuple[int, int]]:
    return [(unit, n) for unit, count in enumerate(counts) for n in range(count)]


@given(ROWS, st.integers(0, 3), st.booleans())
@REPEATABLE
def test_given_splits_hold_and_nothing_leaks(rows: list[Any], seed: int, keep_repeats: bool) -> None:
    decision = decided(rows, seed, keep_repeats)
    for row, split in zip(rows, decision.split, strict=True):
        if row["given"] in ("validation", "test"):
            assert split in (GIVEN[row["given"]], NONE)
    kept = decision.split != NONE
    named = [{**row, "audio": row["audio"] and f"sound {row['audio']}"} for row in rows]
    assert shared(named, decision, "audio") == set()
    audio = [row["audio"] for row, stays in zip(rows, kept, strict=True) if stays and row["audio"]]
    assert len(audio) == len(set(audio))
    given_split = [{**row, "text": row["text"] if row["speaker"] else ""} for row in rows]
    ours = np.array([GIVEN[row["given"]] <= TRAIN for row in rows], bool)
    # What we hold out, and what the source holds out of the same speaker.
    assert shared(given_split, decision, "source", "speaker", "text") == set()
    mine = Decision(np.where(ours, decision.split, NONE), decision.reason, decision.other)
    assert shared(rows, mine, "text") == set()


@given(ROWS)
@REPEATABLE
def test_a_row_is_dropped_because_of_one_that_is_like_it(rows: list[Any]) -> None:
    decision = decided(rows)
    for number in np.flatnonzero(decision.split == NONE):
        row, other = rows[number], rows[decision.other[number]]
        reason = REASONS[decision.reason[number]]
        if "audio" in reason:
            assert row["audio"] == other["audio"] != ""
        elif "speaker" in reason:
            assert (row["source"], row["speaker"], row["text"]) == (other["source"], other["speaker"], other["text"])
            assert row["speaker"]
        else:
            assert row["text"] == other["text"]
        if "leak" in reason:
            assert other["given"] in ("validation", "test")


@given(ROWS, st.integers(0, 3))
@REPEATABLE
def test_one_seed_gives_one_division(rows: list[Any], seed: int) -> None:
    assert outcome(rows, seed=seed) == outcome(rows, seed=seed)


def test_another_seed_gives_another_division() -> None:
    rows = [clip(f"문장 {n}", f"s{n}") for n in range(100)]
    assert len({tuple(outcome(rows, seed=seed)) for seed in range(5)}) == 5


@given(MIXED, st.randoms(use_true_random=False))
@REPEATABLE
def test_the_order_of_the_rows_does_not_matter(rows: list[Any], random: Any) -> None:
    """A database gives its rows in any order; who is held out must not hang on it."""
    rows = list({(row["speaker"], row["text"]): row for row in rows}.values())
    order = list(range(len(rows)))
    random.shuffle(order)
    first, second = decided(rows), decided([rows[n] for n in order])
    assert first.split[order].tolist() == second.split.tolist()


@pytest.mark.parametrize("more", [1, 20, 200])
@pytest.mark.parametrize("kind", ["speakers", "sentences", "calls"])
def test_more_rows_move_few_of_those_that_were_there(kind: str, more: int) -> None:
    """What moves has to be copied to the box again."""

    def row(n: int) -> Any:
        if kind == "sentences":
            return clip(f"문장 {n}", "kim")
        return clip(f"문장 {n}", f"s{n // 5}", group=f"call {n // 3}" if kind == "calls" else "")

    rows = [row(n) for n in range(2000 + more)]
    before, after = decided(rows[:2000]), decided(rows)
    moved = np.count_nonzero(before.split != after.split[:2000])
    assert moved <= 15 + more / 4
    assert np.count_nonzero(after.split > TRAIN) == pytest.approx(0.2 * len(rows), abs=6)


def test_more_clips_of_the_same_speakers_move_few_of_those_that_were_there() -> None:
    rows = [clip(f"문장 {n}", f"s{n % 200}") for n in range(2200)]
    before, after = decided(rows[:2000]), decided(rows)
    assert np.count_nonzero(before.split != after.split[:2000]) <= 200


@pytest.mark.parametrize("speakers", [1, 20, 200])
def test_a_corpus_is_divided_alike_under_any_name_of_its_source(speakers: int) -> None:
    """Out of a table or a database; the keys of speakers hold the name of the source."""
    rows = [clip(f"{n} 번 문장", f"s{n % speakers}", source="table") for n in range(600)]
    assert outcome(rows) == outcome([{**row, "source": "sql"} for row in rows])


@given(OWN_SENTENCES, st.integers(0, 3))
@REPEATABLE
def test_small_groups_are_divided_as_wished(rows: list[Any], seed: int) -> None:
    """To half a group more or less in each held-out split."""
    decision = decided(rows, seed)
    counts = [np.count_nonzero(decision.split == split) for split in (TRAIN, VALIDATION, TEST)]
    assert counts == pytest.approx([share * len(rows) for share in SHARES], abs=5)
    assert shared(rows, decision, "speaker") == set()


@given(MIXED, st.integers(0, 3))
@REPEATABLE
def test_no_split_is_empty_and_no_sentence_on_both_sides(rows: list[Any], seed: int) -> None:
    assume(len({row["text"] for row in rows}) >= 3)
    with messages() as told:
        decision = decided(rows, seed)
    assert {TRAIN, VALIDATION, TEST} <= set(decision.split.tolist())
    assert shared(rows, decision, "text") == set()
    assert not shared(rows, decision, "speaker") or any("speakers are on both sides" in message for message in told)
