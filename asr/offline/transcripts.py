"""Transcripts: what is said in a recording, in segments that a viewer can read, with their times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from asr.offline.symptoms import REPEATS, find_loop
from asr.offline.word_times import Word

# A pause that ends a segment, and the shortest time for which one is shown (Netflix: five sixths of a second).
PAUSE_S, SHORTEST_S = 0.5, 0.833
SENTENCE_END = re.compile(r"[.?!。？！…][\"'”’)\]]*$")


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording and what is said in it.

    Attributes:
        start, end: seconds from the beginning of the recording.
        words: the same word by word, where times were asked for.
        repeats: how often the words that stand here once were written in a row; above 1, the model had lost itself.
    """

    start: float
    end: float
    text: str
    words: list[Word] = field(default_factory=list)
    repeats: int = 1


@dataclass(frozen=True)
class Transcript:
    """All of a recording.

    Attributes:
        name: the file.
        duration_s: its length.
        segments: in the order of time; none overlaps another.
        notes: what a reader must know, as that the file is cut off.
        base: what the untuned model writes, where that was asked for.
    """

    name: str
    duration_s: float
    segments: list[Segment]
    notes: list[str] = field(default_factory=list)
    base: str | None = None

    @property
    def text(self) -> str:
        """Everything that is said, in one line."""
        return " ".join(segment.text for segment in self.segments)


@dataclass(frozen=True)
class Shape:
    """How long a segment may be.

    Attributes:
        line_width: characters of a line; 0 for any number.
        lines: of a segment.
        seconds: that it may be shown.
    """

    line_width: int = 16
    lines: int = 2
    seconds: float = 7.0


def segments_of(words: Sequence[Word], shape: Shape, end_s: float) -> list[Segment]:
    """Join words to segments: up to a pause, the end of a sentence, or what `shape` allows.

    Args:
        words: with times in the recording, in their order.
        end_s: of the recording; no segment is shown beyond it.
    """
    groups: list[list[Word]] = []
    for word in words:
        if groups and not _ends(groups[-1], word, shape):
            groups[-1].append(word)
        else:
            groups.append([word])
    segments: list[Segment] = []
    for group, following in zip(groups, [*groups[1:], None], strict=True):
        latest = min(end_s, following[0].start) if following else end_s
        start = max(group[0].start, segments[-1].end if segments else 0.0)
        end = max(start, min(latest, max(group[-1].end, start + SHORTEST_S)))
        segments.append(Segment(start, end, " ".join(word.text for word in group), group))
    return segments


def broken_into_lines(text: str, shape: Shape) -> list[str]:
    """Return a segment's text in lines of at most `line_width` characters, broken at spaces."""
    lines: list[str] = []
    for word in text.split():
        if lines and (not shape.line_width or len(lines[-1]) + 1 + len(word) <= shape.line_width):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def without_loop(text: str) -> tuple[str, int]:
    """Return a text in which a loop (`asr.offline.symptoms.find_loop`) stands once, and how often it was written."""
    loop = find_loop(text)
    if loop is None:
        return text, 1
    places = [place for place, char in enumerate(text) if char != " "]
    squeezed = "".join(text[place] for place in places)
    found = max(REPEATS.finditer(squeezed), key=lambda match: len(match[0]), default=None)
    if found is None:
        return text, 1
    unit = len(found["short"] or found["long"])
    begin, end = places[found.start() + unit - 1] + 1, places[found.end() - 1] + 1
    return " ".join(f"{text[:begin]} {text[end:]}".split()), loop.times


def _ends(group: list[Word], word: Word, shape: Shape) -> bool:
    """Whether a segment ends before `word`."""
    last = group[-1]
    if word.start - last.end >= PAUSE_S or SENTENCE_END.search(last.text):
        return True
    if word.end - group[0].start > shape.seconds:
        return True
    lines = broken_into_lines(" ".join([*(one.text for one in group), word.text]), shape)
    return bool(shape.line_width) and len(lines) > shape.lines
