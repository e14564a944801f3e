"""Transcripts and their files: segments that can be read, times that ascend, formats that players take."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.offline.decoding import Spoken
from asr.offline.speech import Timeline
from asr.offline.subtitles import FORMATS
from asr.offline.transcribing import _segments
from asr.offline.transcripts import (
    PAUSE_S,
    SHORTEST_S,
    Segment,
    Shape,
    Transcript,
    broken_into_lines,
    segments_of,
    without_loop,
)
from asr.offline.word_times import Word
from asr.shared.audio import SAMPLE_RATE

WIDE = Shape(0, 2, 30.0)
SRT_CUE = re.compile(r"(\d+)\n(\d\d:\d\d:\d\d,\d{3}) --> (\d\d:\d\d:\d\d,\d{3})\n((?:.+\n)+)")


def words(*spans: tuple[str, float, float]) -> list[Word]:
    return [Word(*span) for span in spans]


def transcript(*segments: Segment, **more) -> Transcript:
    return Transcript("call.wav", 60.0, list(segments), **more)


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.replace(",", ".").split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


# Segments


def test_a_pause_and_a_sentence_end_a_segment():
    said = words(("안녕하세요.", 0, 1), ("네", 1.1, 1.4), ("그럼", 1.4 + PAUSE_S, 3), ("시작", 3, 4))
    assert [segment.text for segment in segments_of(said, WIDE, 60)] == ["안녕하세요.", "네", "그럼 시작"]


def test_no_segment_is_longer_than_it_may_be():
    said = [Word("가나다라마", float(n), n + 0.9) for n in range(20)]
    for segment in segments_of(said, Shape(16, 2, 7.0), 60):
        assert len(broken_into_lines(segment.text, Shape(16, 2))) <= 2
        assert segment.end - segment.start <= 7.0
    longest = segments_of(said, Shape(0, 2, 5.0), 60)
    assert [len(segment.words) for segment in longest] == [5, 5, 5, 5]


def test_a_short_word_is_shown_long_enough_to_be_read():
    """And not into the next one, nor beyond the end."""
    first, second, last = segments_of(words(("네", 1, 1.1), ("아니요", 1.7, 1.8), ("네", 59.9, 60)), WIDE, 60)
    assert first.end == 1.7
    assert second.end == pytest.approx(1.7 + SHORTEST_S)
    assert last.end == 60


def test_lines_break_at_spaces_and_hold_all_words():
    text = "데이터와 모델과 테스트 및 끝점같은 콘텐츠"
    lines = broken_into_lines(text, Shape(10, 2))
    assert " ".join(lines) == text
    assert max(map(len, lines)) <= 10
    assert broken_into_lines("가나다라마바사아자차카타파하", Shape(5, 2)) == ["가나다라마바사아자차카타파하"], (
        "no word is cut"
    )
    assert broken_into_lines(text, Shape(0, 2)) == [text]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.text("가나다라 .?", min_size=1), st.floats(-1, 12), st.floats(-1, 12)), max_size=12),
    st.floats(0, 50),
    st.floats(0.1, 10),
    st.floats(0, 1),
    st.floats(0, 60),
)
def test_times_ascend_whatever_the_model_tells(told, begin, length, share, gap):
    """Times that stand still, go back or lie outside come from models that lose themselves."""
    # Two stretches, with a silence between them of which the window holds a second at most.
    first = int(share * length * SAMPLE_RATE)
    start, silence = int(begin * SAMPLE_RATE), int(gap * SAMPLE_RATE)
    second = start + first + silence
    end = second + int(length * SAMPLE_RATE) - first
    offset = first + min(silence, SAMPLE_RATE)
    timeline = Timeline([0, offset], [start, second], [start + first, end])
    length, end = (offset + end - second) / SAMPLE_RATE, end / SAMPLE_RATE
    said = [Word(text.strip() or "네", start, end) for text, start, end in told]
    spoken = Spoken(" ".join(word.text for word in said), said)
    segments = _segments(spoken, timeline, length, end, Shape())
    assert " ".join(s.text for s in segments).split() == without_loop(spoken.text)[0].split()
    now = start / SAMPLE_RATE
    for segment in segments:
        assert now - 1e-6 <= segment.start < segment.end <= end + 1e-6
        now = segment.end


# Loops


@pytest.mark.parametrize(
    ("text", "left", "times"),
    [
        ("네 " + "감사합니다 " * 8, "네 감사합니다", 8),
        ("전화 주세요 " * 10 + "끝", "전화 주세요 끝", 10),
        ("하" * 40, "하", 40),
        ("빨리 빨리 오세요", "빨리 빨리 오세요", 1),
        ("", "", 1),
    ],
)
def test_a_loop_stands_once(text, left, times):
    assert without_loop(text.strip()) == (left, times)


def test_a_loop_is_marked_wherever_it_is_shown():
    looped = transcript(Segment(0, 5, "감사합니다", [], 8), notes=["1 loops were cut off"])
    for name, write in FORMATS.items():
        shown = write(looped, "segment", Shape())
        assert ('"repeats": 8' if name == "json" else "[반복 8회") in shown.replace("\n", " ")


# Formats

TWO = (
    Segment(0.5, 2.0, "첫 <문장> & 둘", words(("첫", 0.5, 1), ("<문장>", 1, 1.4), ("&", 1.4, 1.5), ("둘", 1.5, 2))),
    Segment(3661.25, 3662.0, "끝", words(("끝", 3661.25, 3662.0))),
)


def test_srt():
    assert FORMATS["srt"](transcript(*TWO), "segment", Shape()) == (
        "1\n00:00:00,500 --> 00:00:02,000\n첫 <문장> & 둘\n\n2\n01:01:01,250 --> 01:01:02,000\n끝\n"
    )
    assert FORMATS["srt"](transcript(*TWO), "word", Shape()).count(" --> ") == 5


def test_vtt_escapes_and_tells_times_within():
    plain = FORMATS["vtt"](transcript(*TWO), "segment", Shape())
    assert plain.startswith("WEBVTT\n\n00:00:00.500 --> 00:00:02.000\n첫 &lt;문장&gt; &amp; 둘\n\n01:01:01.250")
    timed = FORMATS["vtt"](transcript(*TWO), "word", Shape())
    assert "첫 <00:00:01.000>&lt;문장&gt; <00:00:01.400>&amp; <00:00:01.500>둘" in timed


def test_tsv_is_in_milliseconds():
    assert FORMATS["tsv"](transcript(*TWO), "segment", Shape()).splitlines() == [
        "start\tend\ttext", "500\t2000\t첫 <문장> & 둘", "3661250\t3662000\t끝",
    ]  # fmt: skip


def test_txt_is_a_line_unless_times_are_asked_for():
    assert FORMATS["txt"](transcript(*TWO), "none", Shape()) == "첫 <문장> & 둘 끝\n"
    assert FORMATS["txt"](transcript(*TWO), "segment", Shape()).splitlines()[1] == "[01:01:01.250 --> 01:01:02.000] 끝"
    assert FORMATS["txt"](transcript(), "none", Shape()) == "\n", "silence has a line, too"


def test_json_holds_everything():
    told = json.loads(FORMATS["json"](transcript(*TWO, base="첫 문장 끝"), "word", Shape()))
    assert (told["file"], told["duration_s"], told["base_text"]) == ("call.wav", 60.0, "첫 문장 끝")
    assert told["segments"][1]["words"] == [{"text": "끝", "start": 3661.25, "end": 3662.0}]
    assert "words" not in json.loads(FORMATS["json"](transcript(*TWO), "segment", Shape()))["segments"][0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("가나 -><&\t.", min_size=1, max_size=40), max_size=6))
def test_subtitles_parse_whatever_is_said(texts):
    """Nothing that is said may look like the time of a cue, or end one."""
    clean = [" ".join(text.split()) or "네" for text in texts]
    segments = [Segment(2.0 * n, 2.0 * n + 1.5, text) for n, text in enumerate(clean)]
    srt = FORMATS["srt"](transcript(*segments), "segment", Shape())
    cues = SRT_CUE.findall(srt)
    assert [int(number) for number, *_ in cues] == list(range(1, len(clean) + 1))
    for segment, (_, start, end, _) in zip(segments, cues, strict=True):
        assert (seconds(start), seconds(end)) == (segment.start, segment.end)
    vtt = FORMATS["vtt"](transcript(*segments), "segment", Shape())
    assert vtt.count("-->") == len(clean)


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_another_program_reads_the_subtitles(tmp_path, form):
    """FFmpeg's reader finds every cue, with its times and its lines."""
    import av

    segments = [Segment(1.5 * n, 1.5 * n + 1.25, f"{n}번째 자막은 & < > 기호와 함께 두 줄이 됩니다") for n in range(40)]
    segments[7] = Segment(10.5, 11.75, "네 --> 아니요")
    file = tmp_path / f"subtitles.{form}"
    file.write_text(FORMATS[form](transcript(*segments), "segment", Shape()), encoding="utf-8")
    with av.open(str(file)) as container:
        (stream,) = container.streams
        found = [packet for packet in container.demux(stream) if packet.size]
        times = [(float(p.pts * p.time_base), float((p.pts + p.duration) * p.time_base)) for p in found]
        texts = [bytes(packet).decode() for packet in found]
    assert times == [(segment.start, segment.end) for segment in segments]
    assert [len(text.splitlines()) for text in texts] == [2 if n != 7 else 1 for n in range(40)]
    assert all("자막은" in text for n, text in enumerate(texts) if n != 7)
