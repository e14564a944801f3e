"""Two texts laid side by side: what was read, missed, added and taken for something else, for a reader's eye.

The alignment is that of CER without spaces; the spaces are then put back where the two texts have them. A space that
only one of them has is told apart from errors (`space`), because it is none in the headline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Literal

from rapidfuzz.distance import Levenshtein

from asr.offline.error_rates import without_spaces
from asr.shared.text import clean_text

Kind = Literal["equal", "substitute", "delete", "insert", "space"]


@dataclass(frozen=True)
class Segment:
    """A stretch of the two texts in which the same happened.

    Attributes:
        kind: equal; substitute, delete and insert as error rates count them; space where only one text has one.
        reference: the stretch of the reference, its spaces included.
        hypothesis: the stretch of what was written.
    """

    kind: Kind
    reference: str
    hypothesis: str


def align(reference: str, hypothesis: str) -> list[Segment]:
    """Return the segments of two texts in reading order.

    Joined, the references of all segments are the reference as `clean_text` has it, and so are the hypotheses. The
    characters of substitute, delete and insert segments, spaces left out, are as many as CER without spaces counts.
    """
    segments = []
    for kind, run in groupby(_pieces(_Text(clean_text(reference)), _Text(clean_text(hypothesis))), _kind):
        pieces = list(run)
        said, written = ("".join(parts) for parts in zip(*((p.reference, p.hypothesis) for p in pieces), strict=True))
        segments.append(Segment(kind, said, written))
    return segments


@dataclass(frozen=True)
class Confusions:
    """What was taken for what over a corpus, each with its count, the most frequent first.

    Attributes:
        substituted: (character of the reference, character written, count).
        deleted: (character of the reference, count).
        inserted: (character written, count).
    """

    substituted: list[tuple[str, str, int]] = field(default_factory=list)
    deleted: list[tuple[str, int]] = field(default_factory=list)
    inserted: list[tuple[str, int]] = field(default_factory=list)


def confusions(
    predictions: Sequence[str], references: Sequence[str], normalize: Callable[[str], str] = clean_text
) -> Confusions:
    """Count substituted, deleted and inserted characters over a corpus; spaces are left out.

    Args:
        predictions: what was written, in the order of the references.
        references: what was said.
        normalize: applied to both, as `Normalizer()`, so that punctuation is not counted among the syllables.

    Raises:
        ValueError: not as many predictions as references.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for written, said in zip(predictions, references, strict=True):
        said, written = without_spaces(normalize(said)), without_spaces(normalize(written))
        for edit in Levenshtein.editops(said, written):
            missed = "" if edit.tag == "insert" else said[edit.src_pos]
            put = "" if edit.tag == "delete" else written[edit.dest_pos]
            pairs[missed, put] += 1
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return Confusions(
        [(missed, put, count) for (missed, put), count in ranked if missed and put],
        [(missed, count) for (missed, put), count in ranked if not put],
        [(put, count) for (missed, put), count in ranked if not missed],
    )


# Spaces put back


class _Text:
    """A text without its spaces, and which of its characters have one before them."""

    def __init__(self, text: str) -> None:
        self.characters = without_spaces(text)
        ends = accumulate(map(len, text.split()))
        self.after_space = set(ends) - {len(self.characters)}

    def spaced(self, at: int) -> bool:
        """Whether a space stands before character `at`."""
        return at in self.after_space

    def stretch(self, start: int, end: int) -> str:
        """Return characters `start` to `end` with the spaces before each."""
        return "".join(" " * self.spaced(at) + self.characters[at] for at in range(start, end))


def _pieces(said: _Text, written: _Text) -> Iterator[Segment]:
    """Yield single characters, spaces and runs of missed or added characters, in reading order."""
    space_told = False
    for edit in Levenshtein.opcodes(said.characters, written.characters):
        i, i_end, j, j_end = edit.src_start, edit.src_end, edit.dest_start, edit.dest_end
        if edit.tag in ("equal", "replace"):
            for a, b in zip(range(i, i_end), range(j, j_end), strict=True):
                if not space_told:
                    yield from _space(said.spaced(a), written.spaced(b))
                space_told = False
                kind: Kind = "equal" if edit.tag == "equal" else "substitute"
                yield Segment(kind, said.characters[a], written.characters[b])
            continue
        # 가 나다 heard as 가 다: the one space of the output is the one before the missed 나.
        missed = edit.tag == "delete"
        longer, start, end = (said, i, i_end) if missed else (written, j, j_end)
        run = longer.stretch(start, end)
        space_beside = written.spaced(j) if missed else said.spaced(i)
        if space_beside and longer.spaced(start) and not longer.spaced(end):
            yield from _space(True, True)
            run, space_told = run[1:], True
        yield Segment("delete", run, "") if missed else Segment("insert", "", run)


def _space(in_reference: bool, in_hypothesis: bool) -> Iterator[Segment]:
    if in_reference or in_hypothesis:
        kind: Kind = "equal" if in_reference == in_hypothesis else "space"
        yield Segment(kind, " " * in_reference, " " * in_hypothesis)


def _kind(piece: Segment) -> Kind:
    return piece.kind
