"""Subtitles and other files of a transcript: txt, srt, vtt, tsv and json, each a small function."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import asdict

from asr.offline.transcripts import Segment, Shape, Transcript, broken_into_lines

LOOP_MARK = "[반복 {times}회 → 1회]"


def as_txt(transcript: Transcript, timestamps: str, _shape: Shape) -> str:
    """One line; with times, a line for each segment or word."""
    if timestamps == "none":
        lines = [" ".join(_marked(segment) for segment in transcript.segments)]
    else:
        spans = _spans(transcript, timestamps)
        lines = [f"[{_clock(start, '.')} --> {_clock(end, '.')}] {text}" for start, end, text in spans]
    return "".join(f"{line}\n" for line in lines)


def as_srt(transcript: Transcript, timestamps: str, shape: Shape) -> str:
    """SubRip: a numbered cue for each segment, or each word."""
    cues = []
    for number, (start, end, text) in enumerate(_spans(transcript, timestamps), start=1):
        lines = "\n".join(broken_into_lines(text, shape)).replace("-->", "→")
        cues.append(f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{lines}\n")
    return "\n".join(cues)


def as_vtt(transcript: Transcript, timestamps: str, shape: Shape) -> str:
    """WebVTT (W3C): a cue for each segment; with times of words, these stand within."""
    cues = ["WEBVTT\n"]
    for segment in transcript.segments:
        text = "\n".join(broken_into_lines(_marked(segment), shape))
        if timestamps == "word" and segment.words and segment.repeats == 1:
            first, *rest = segment.words
            text = html.escape(first.text, quote=False)
            for word in rest:
                # A time within a cue must lie behind its start, and ascend.
                inside = segment.start < word.start < segment.end
                text += (f" <{_clock(word.start, '.')}>" if inside else " ") + html.escape(word.text, quote=False)
        else:
            text = html.escape(text, quote=False)
        cues.append(f"{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n{text}\n")
    return "\n".join(cues)


def as_tsv(transcript: Transcript, timestamps: str, _shape: Shape) -> str:
    """Columns start and end in milliseconds, and text."""
    rows = ["start\tend\ttext"]
    rows += [
        f"{round(1000 * start)}\t{round(1000 * end)}\t{text.replace(chr(9), ' ')}"
        for start, end, text in _spans(transcript, timestamps)
    ]
    return "".join(f"{row}\n" for row in rows)


def as_json(transcript: Transcript, timestamps: str, _shape: Shape) -> str:
    """Everything: file, duration, text, segments and, where asked for, words."""
    segments = []
    for segment in transcript.segments:
        told = asdict(segment)
        if timestamps != "word":
            del told["words"]
        segments.append(told)
    content = {"file": transcript.name, "duration_s": round(transcript.duration_s, 3), "text": transcript.text}
    content |= {} if transcript.base is None else {"base_text": transcript.base}
    content |= {"segments": segments, "notes": transcript.notes}
    return json.dumps(_rounded(content), ensure_ascii=False, indent=2) + "\n"


FORMATS: dict[str, Callable[[Transcript, str, Shape], str]] = {
    "txt": as_txt,
    "srt": as_srt,
    "vtt": as_vtt,
    "tsv": as_tsv,
    "json": as_json,
}


def times_of(timestamps: str, form: str) -> str:
    """Return which times stand in a format, where `timestamps` is "auto" or says so."""
    if timestamps != "auto":
        return timestamps
    return "none" if form == "txt" else "segment"


def _spans(transcript: Transcript, timestamps: str) -> list[tuple[float, float, str]]:
    if timestamps == "word" and all(segment.words for segment in transcript.segments):
        return [(word.start, word.end, word.text) for segment in transcript.segments for word in segment.words]
    return [(segment.start, segment.end, _marked(segment)) for segment in transcript.segments]


def _marked(segment: Segment) -> str:
    if segment.repeats == 1:
        return segment.text
    return f"{segment.text} {LOOP_MARK.format(times=segment.repeats)}".strip()


def _clock(seconds: float, point: str) -> str:
    """Return a time as hours:minutes:seconds and milliseconds."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 3) if isinstance(value, float) else value
