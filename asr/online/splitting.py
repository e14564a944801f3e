"""Splitting: which clips repeat others, which would leak from the held-out side, and who goes where.

All of it works on a few numbers a clip, so that a million clips take some 100 MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils import UserError, log

if TYPE_CHECKING:
    import numpy as np

TRAIN, VALIDATION, TEST, NONE = 0, 1, 2, -1
SPLITS = ("train", "validation", "test")
# Keeping speakers apart may cost so much of the clips, namely those with sentences of the held-out side.
MOST_LOST = 0.3


@dataclass
class Clips:
    """The clips that were judged good as columns of numbers, in the order of the rows.

    Attributes:
        row: number of the row that the clip came from.
        source, speaker, group, text, audio: int64 keys; 0 where there is no speaker or group.
        given: int8, the split that the source gives, NONE where it gives none.
        seconds: float32.
        syllables: int32.
    """

    row: np.ndarray

    source: np.ndarray
    speaker: np.ndarray
    group: np.ndarray
    text: np.ndarray
    audio: np.ndarray
    given: np.ndarray
    seconds: np.ndarray
    syllables: np.ndarray


@dataclass
class Decision:
    """What becomes of the clips.

    Attributes:
        split: int8, 0 train, 1 validation, 2 test, NONE for what is dropped.
        reason: index into REASONS, 0 for what is kept.
        other: index of the clip because of which it is dropped, or -1.
    """

    split: np.ndarray
    reason: np.ndarray
    other: np.ndarray


REASONS = (
    "",
    "duplicate audio",
    "duplicate text of the speaker",
    "audio leaks from a held-out split",
    "speaker and text leak from a held-out split",
    "sentence is in a held-out split",
)
SAME_AUDIO, SAME_TEXT, AUDIO_LEAK, TEXT_LEAK, SENTENCE_LEAK = range(1, 6)


def decide(clips: Clips, shares: tuple[float, ...], seed: int, keep_repeats: bool) -> Decision:
    """Drop repeats and leaks, and divide what no source has divided.

    Args:
        clips: all that were judged good.
        shares: of train, validation and test.
        seed: fixes who goes where.
        keep_repeats: a sentence that its speaker says again stays, unless it crosses the given splits.

    Raises:
        UserError: what is to be divided cannot be, because it is all of one group.
    """
    import numpy as np

    count = len(clips.given)
    decision = Decision(clips.given.copy(), np.zeros(count, np.int8), np.full(count, -1, np.int64))
    _drop_repeats(clips, decision, clips.audio, np.ones(count, bool), SAME_AUDIO, AUDIO_LEAK, keep=False)
    known = clips.speaker != 0
    both = _pair(clips.speaker, clips.text)
    _drop_repeats(clips, decision, both, known, SAME_TEXT, TEXT_LEAK, keep=keep_repeats)
    _divide(clips, decision, shares, seed)
    return decision


def _drop_repeats(
    clips: Clips, decision: Decision, key: np.ndarray, eligible: np.ndarray, reason: int, leak: int, keep: bool
) -> None:
    """Of clips with one key keep the one that is furthest held out, and of those the first."""
    import numpy as np

    alive = np.flatnonzero(eligible & (decision.reason == 0))
    # Test before validation before train, then by row.
    order = alive[np.lexsort((alive, -clips.given[alive], key[alive]))]
    first = np.ones(len(order), bool)
    first[1:] = key[order][1:] != key[order][:-1]
    leader = order[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
    crosses = (clips.given[leader] > TRAIN) & (clips.given[order] != clips.given[leader])
    dropped = ~first & (crosses | (not keep))
    rows = order[dropped]
    decision.reason[rows] = np.where(crosses[dropped], leak, reason)
    decision.other[rows] = leader[dropped]
    decision.split[rows] = NONE


def _divide(clips: Clips, decision: Decision, shares: tuple[float, ...], seed: int) -> None:
    """Give a split to the rows of sources that lack one; sources that lack the same are divided together."""
    import numpy as np

    lacking: dict[tuple[int, ...], list[int]] = {}
    for source in np.unique(clips.source):
        given = set(np.unique(clips.given[clips.source == source]))
        lacks = tuple(split for split in (VALIDATION, TEST) if split not in given and shares[split] > 0)
        lacking.setdefault(lacks, []).append(source)
    for lacks, sources in lacking.items():
        pool = np.isin(clips.source, sources) & (clips.given <= TRAIN) & (decision.reason == 0)
        decision.split[pool] = TRAIN
        rows = np.flatnonzero(pool)
        if lacks and len(rows):
            targets = {split: shares[split] for split in lacks}
            decision.split[rows] = _assign(clips, rows, targets, seed)
    _drop_shared_sentences(clips, decision)


def _assign(clips: Clips, rows: np.ndarray, targets: dict[int, float], seed: int) -> np.ndarray:
    """Return a split for each of `rows`, so that no group and, where that can be, no sentence stands on both sides."""
    import numpy as np

    text, group = clips.text[rows], _group_of(clips, rows)
    together = _components(group, text)
    told = ""
    for units, told in (  # noqa: B007 (the last one is told)
        (together, ""),
        (group, "the same sentences are said by many: those on the held-out side leave the training side"),
        (text, "too few speakers to keep them apart: the split keeps sentences apart, and speakers are on both sides"),
    ):
        if units is text and (clips.group[rows] != 0).any():
            raise UserError(
                "--group-column: the groups are too few or too much alike to be divided; use a finer one, or --split"
            )
        split = _fill_up(units, _order(units, text, seed), targets, at_least_one=units is text)
        left = _without_shared_sentences(text, split)
        enough = all(np.count_nonzero(left == wanted) >= share * len(rows) / 2 for wanted, share in targets.items())
        if enough and (left == TRAIN).any() and np.count_nonzero(left == NONE) <= MOST_LOST * len(rows):
            break
    if told and (clips.speaker[rows] != 0).any():
        log.info("split: %s", told)
    return split


def _without_shared_sentences(text: np.ndarray, split: np.ndarray) -> np.ndarray:
    """Return the split with NONE for clips whose sentence is also said further on the held-out side."""
    import numpy as np

    left = split.copy()
    left[(split == TRAIN) & np.isin(text, text[split > TRAIN])] = NONE
    left[(split == VALIDATION) & np.isin(text, text[split == TEST])] = NONE
    return left


def _group_of(clips: Clips, rows: np.ndarray) -> np.ndarray:
    import numpy as np

    named = np.where(clips.group[rows] != 0, clips.group[rows], clips.speaker[rows])
    return np.where(named != 0, named, clips.text[rows])


def _components(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Number the connected parts of the graph in which each row joins its two keys."""
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    _, a = np.unique(left, return_inverse=True)
    _, b = np.unique(right, return_inverse=True)
    size = int(a.max()) + 1 + int(b.max()) + 1
    edges = coo_matrix((np.ones(len(a), np.int8), (a, b + int(a.max()) + 1)), shape=(size, size))
    return connected_components(edges, directed=False)[1][a]


def _order(units: np.ndarray, text: np.ndarray, seed: int) -> np.ndarray:
    """Number the units (as `np.unique` lists them) in an order that `seed` fixes, by one of the sentences of each.

    A unit's place depends neither on the order of the rows, nor on other units, nor on what its source is called: rows
    that come or go move few others, and a corpus is divided alike whether it comes out of a table or a database.
    """
    import numpy as np

    keys, inverse = np.unique(units, return_inverse=True)
    sentence = np.full(len(keys), np.iinfo(np.int64).max)
    np.minimum.at(sentence, inverse, text)
    # Units with the same sentence are told apart by their own keys.
    return np.lexsort((_scattered(keys, seed), _scattered(sentence, seed)))


def _fill_up(units: np.ndarray, order: np.ndarray, targets: dict[int, float], at_least_one: bool) -> np.ndarray:
    """Give each unit to a held-out split as long as it fits; the rest trains.

    Validation is filled from the beginning of `order` and test from its end, so that a few units more shift only the
    places where they stop. With `at_least_one` a split for which every unit is too large gets the smallest.
    """
    import numpy as np

    keys, inverse, sizes = np.unique(units, return_inverse=True, return_counts=True)
    least = 1 if len(keys) > len(targets) else 0
    of_unit = np.full(len(keys), TRAIN, np.int8)
    for split, share in targets.items():
        wanted = max(least, share * len(units))
        for unit in order if split == VALIDATION else order[::-1]:
            if wanted <= 0:
                break
            # Half a unit too much is nearer to the share than half a unit too little.
            if of_unit[unit] == TRAIN and wanted >= sizes[unit] / 2:
                of_unit[unit] = split
                wanted -= sizes[unit]
    for split in targets:
        left = [unit for unit in order if of_unit[unit] == TRAIN]
        if at_least_one and split not in of_unit and len(keys) > len(targets):
            of_unit[min(left, key=lambda unit: sizes[unit])] = split
    return of_unit[inverse]


def _scattered(keys: np.ndarray, seed: int) -> np.ndarray:
    """Return for each key a number that is spread evenly and depends on key and seed alone (splitmix64)."""
    import numpy as np

    with np.errstate(over="ignore"):
        mixed = keys.astype(np.int64).view(np.uint64) + np.uint64(seed % 2**64) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        return mixed ^ (mixed >> np.uint64(31))


def _drop_shared_sentences(clips: Clips, decision: Decision) -> None:
    """Take out of the training side what we divided and what is also said on the held-out side that we divided."""
    import numpy as np

    ours = (clips.given <= TRAIN) & (decision.reason == 0)
    held_out = np.flatnonzero(ours & (decision.split > TRAIN))
    if not len(held_out):
        return
    order = held_out[np.argsort(clips.text[held_out], kind="stable")]
    for side, others in ((TRAIN, order), (VALIDATION, order[decision.split[order] == TEST])):
        rows = np.flatnonzero(ours & (decision.split == side) & np.isin(clips.text, clips.text[others]))
        decision.other[rows] = others[np.searchsorted(clips.text[others], clips.text[rows])]
        decision.reason[rows] = SENTENCE_LEAK
        decision.split[rows] = NONE


def _pair(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return one key for two; a multiplication mixes them."""
    import numpy as np

    with np.errstate(over="ignore"):
        return left * np.int64(-7046029254386353131) + right
