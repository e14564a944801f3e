"""Transcribing: recordings of any format and length, in a bounded memory; a bad one costs itself alone."""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.offline import speech as speech_module
from asr.offline.decoding import Spoken
from asr.offline.inputs import recordings_named
from asr.offline.recordings import BLOCK_S, read_blocks
from asr.offline.speech import LONGEST_PAUSE_S, Timeline, Window, Windowing, speech_windows
from asr.offline.transcribing import Failure, _placed, transcribe_recordings
from asr.offline.transcripts import Shape, Transcript
from asr.offline.word_times import Word
from asr.shared.audio import SAMPLE_RATE, AudioError, load_audio
from tests.conftest import DEMO_CORPUS, MEASURING_DATA
from tests.sounds import FORMATS, in_format, wav
from utils import UserError

CLIPS = sorted((DEMO_CORPUS / "clips").glob("*test_00[0-3]*.mp3"))
LONG = MEASURING_DATA / "korean-speech" / "long"


def speech(seconds: float, gap_s: float = 1.0) -> np.ndarray:
    """Clips of the demo, one after the other with pauses, for at least so long."""
    parts: list[np.ndarray] = []
    for clip in itertools.cycle(CLIPS):
        parts += [load_audio(clip), np.zeros(int(gap_s * SAMPLE_RATE), dtype=np.float32)]
        if sum(map(len, parts)) >= seconds * SAMPLE_RATE:
            return np.concatenate(parts)
    raise AssertionError


def saying_nothing(windows: list[Window]) -> list[Spoken]:
    """Each window is heard as a word of its own, from its beginning to its end."""
    return [Spoken("네", [Word("네", 0, len(window.waveform) / SAMPLE_RATE)]) for window in windows]


# Reading


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_are_what_the_whole_file_is(tmp_path, name):
    """Of every format and rate, as the preparation reads it: nothing is lost or doubled where blocks meet."""
    file = tmp_path / "sound"
    file.write_bytes(in_format(name, BLOCK_S + 3.0))
    blocks = list(read_blocks(file))
    whole = load_audio(file)
    joined = np.concatenate(blocks)
    assert len(blocks) == 2
    assert abs(len(joined) - len(whole)) <= SAMPLE_RATE // 10
    shared = min(len(joined), len(whole))
    assert np.corrcoef(joined[:shared], whole[:shared])[0, 1] > 0.98


def test_what_can_be_read_of_a_broken_file_comes_before_the_error(tmp_path):
    data = wav(np.full(70 * SAMPLE_RATE, 0.1, dtype=np.float32))
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 2])
    got = []
    with pytest.raises(AudioError) as error:
        got.extend(read_blocks(tmp_path / "cut.wav"))
    assert error.value.reason == "truncated audio"
    assert 34 * SAMPLE_RATE < sum(map(len, got)) <= 35 * SAMPLE_RATE


@pytest.mark.parametrize(("content", "told"), [(b"", "cannot be"), (b"no audio" * 99, "cannot be decoded")])
def test_what_is_no_audio_is_told(tmp_path, content, told):
    (tmp_path / "bad.mp3").write_bytes(content)
    with pytest.raises(AudioError, match=told):
        list(read_blocks(tmp_path / "bad.mp3"))
    with pytest.raises(AudioError, match="does not exist"):
        list(read_blocks(tmp_path / "lost.mp3"))


# Speech


@pytest.mark.parametrize("windowing", [Windowing(6.0), Windowing(30.0), Windowing(30.0, filled=True)])
def test_windows_hold_all_speech_once_and_in_order(windowing):
    """However the recording is cut into blocks, and wherever its sound comes from."""
    sound = speech(100, gap_s=2.5)
    found = {}
    for block_s in (3, 17, 30, 200):
        size = block_s * SAMPLE_RATE
        blocks = [sound[at : at + size] for at in range(0, len(sound), size)]
        windows = list(speech_windows(blocks, windowing))
        found[block_s] = sum(end - start for window in windows for start, end in window.stretches) / SAMPLE_RATE
        last = 0
        for window in windows:
            assert len(window.waveform) <= windowing.longest_s * SAMPLE_RATE + 1
            assert window.start == window.stretches[0][0]
            for (start, end), offset in zip(window.stretches, window.offsets, strict=True):
                assert last <= start < end
                np.testing.assert_array_equal(window.waveform[offset : offset + end - start], sound[start:end])
                assert window.timeline.at(offset / SAMPLE_RATE) == pytest.approx(start / SAMPLE_RATE)
                last = end
    spread = max(found.values()) - min(found.values())
    assert spread < 0.1 * max(found.values()), found
    assert min(found.values()) > 0.6 * 100 / 2, "most of what is said is found"


def test_windows_that_cost_the_same_are_filled_with_speech_and_not_with_its_pauses():
    """With 5 s of silence between clips of 2 s, a window of 30 s holds about ten of them and not four."""
    sound = speech(240, gap_s=5.0)
    windows = list(speech_windows([sound], Windowing(30.0, filled=True)))
    apart = list(speech_windows([sound], Windowing(30.0)))
    assert len(apart) > 25
    assert len(windows) <= 240 / 7 * 3.5 / 30 + 1
    for window in windows:
        pauses = [
            b - a - (e - s) for (s, e), a, b in zip(window.stretches, window.offsets, window.offsets[1:], strict=False)
        ]
        assert max(pauses) <= LONGEST_PAUSE_S * SAMPLE_RATE


@given(
    st.lists(st.tuples(st.floats(0.3, 8), st.floats(0, 60)), min_size=1, max_size=6),
    st.lists(st.floats(0, 40), min_size=2),
)
@settings(deadline=None)
def test_times_keep_their_order_on_the_way_into_the_recording(stretches, times):
    starts, ends, offsets, at, offset = [], [], [], 0.0, 0.0
    for length, gap in stretches:
        starts.append(int(at * SAMPLE_RATE))
        ends.append(int((at + length) * SAMPLE_RATE))
        offsets.append(int(offset * SAMPLE_RATE))
        at, offset = at + length + gap, offset + length + min(gap, LONGEST_PAUSE_S)
    timeline = Timeline(offsets, starts, ends)
    placed = [timeline.at(seconds) for seconds in sorted(times)]
    assert placed == sorted(placed)


def test_a_word_does_not_last_through_a_pause_that_was_cut_out():
    second = SAMPLE_RATE
    cut = Timeline([0, 6 * second], [0, 60 * second], [5 * second, 70 * second])
    word, late, last = Word("네", 4.5, 9.0), Word("네", 5.5, 9.0), Word("네", 15.0, 16.0)
    told = _placed([word, late, last], cut, 16.0)
    assert [(w.start, round(w.end, 3)) for w in told] == [(4.5, 5.0), (9.0 - 6 + 60, 63.04), (69.0, 70.0)]
    # Here the window has the pause as it was, in which the detector may have missed something.
    whole = Timeline([0, 7 * second], [0, 7 * second], [5 * second, 10 * second])
    assert [(w.start, w.end) for w in _placed([Word("네", 4.5, 6.5)], whole, 10.0)] == [(4.5, 6.5)]


def test_speech_is_not_cut_where_blocks_meet(monkeypatch):
    """The detector knows a pause after the border, and is given the time to see it."""
    talk = [(10, 37), (37, 45)]

    def detect(waveform, longest_s):
        first = int(waveform[0])
        spans = [(max(a, first) - first, min(b, first + len(waveform) // SAMPLE_RATE) - first) for a, b in talk]
        return [(a * SAMPLE_RATE, b * SAMPLE_RATE) for a, b in spans if b - a > 0 and b - a <= longest_s]

    monkeypatch.setattr(speech_module, "_detect", detect)
    sound = np.repeat(np.arange(60, dtype=np.float32), SAMPLE_RATE)
    blocks = [sound[at : at + BLOCK_S * SAMPLE_RATE] for at in range(0, len(sound), BLOCK_S * SAMPLE_RATE)]
    found = [stretch for window in speech_windows(blocks, Windowing(30.0)) for stretch in window.stretches]
    assert [(start // SAMPLE_RATE, end // SAMPLE_RATE) for start, end in found] == talk


def test_silence_has_no_window():
    assert list(speech_windows([np.zeros(SAMPLE_RATE * 40, dtype=np.float32)] * 3, Windowing(30.0))) == []
    assert list(speech_windows([np.zeros(SAMPLE_RATE, dtype=np.float32)], Windowing(30.0))) == []
    assert list(speech_windows([], Windowing(30.0))) == []


def test_a_short_recording_is_heard_as_it_is():
    """As in an evaluation: what the detector would cut off at its ends may belong to a word."""
    clip = load_audio(CLIPS[0])
    (window,) = speech_windows([clip], Windowing(30.0))
    assert window.start == 0
    np.testing.assert_array_equal(window.waveform, clip)


# Transcribing


def test_times_of_windows_are_those_of_the_recording(tmp_path):
    sound = speech(60)
    soundfile.write(tmp_path / "long.wav", sound, SAMPLE_RATE)
    windows = list(speech_windows(read_blocks(tmp_path / "long.wav"), Windowing(10.0)))
    (found,) = transcribe_recordings([tmp_path / "long.wav"], saying_nothing, Windowing(10.0), Shape(0, 1, 30.0))
    assert isinstance(found, Transcript)
    assert found.duration_s == pytest.approx(len(sound) / SAMPLE_RATE)
    assert [s.start for s in found.segments] == pytest.approx([w.start / SAMPLE_RATE for w in windows])
    assert found.segments[-1].end <= found.duration_s


def test_memory_is_bounded_and_order_kept(tmp_path):
    """Of many files and of long ones no more than a pool waits; each gets what is its own."""
    waiting = []

    def hear(windows: list[Window]) -> list[Spoken]:
        waiting.append(sum(len(window.waveform) for window in windows) / SAMPLE_RATE)
        return [Spoken(f"{window.start}") for window in windows]

    paths = []
    for number, seconds in enumerate([5, 70, 5, 5, 90, 5]):
        soundfile.write(tmp_path / f"{number}.wav", speech(seconds), SAMPLE_RATE)
        paths.append(tmp_path / f"{number}.wav")
    found = list(transcribe_recordings(paths, hear, Windowing(10.0), Shape(), pool_s=30.0))
    assert [each.name for each in found] == list(map(str, paths))
    for path, each in zip(paths, found, strict=True):
        assert each.text.split() == [str(w.start) for w in speech_windows(read_blocks(path), Windowing(10.0))]
    assert len(waiting) > 3
    assert max(waiting) <= 40.0


def test_a_bad_file_costs_itself_alone(tmp_path):
    good = [tmp_path / "a.wav", tmp_path / "d.wav"]
    for path in good:
        soundfile.write(path, speech(4), SAMPLE_RATE)
    (tmp_path / "b.wav").write_bytes(b"no audio")
    data = wav(speech(40))
    (tmp_path / "c.wav").write_bytes(data[: len(data) // 2])
    paths = [good[0], tmp_path / "b.wav", tmp_path / "c.wav", good[1]]
    first, bad, cut, last = transcribe_recordings(paths, saying_nothing, Windowing(30.0), Shape())
    assert first.text
    assert last.text
    assert bad == Failure(str(paths[1]), bad.reason)
    assert bad.reason.startswith("unreadable audio: the file cannot be decoded")
    assert cut.text, "what is there is written down"
    assert cut.notes[0].startswith("truncated audio: ")


# Inputs


def test_files_folders_patterns_and_standard_input(tmp_path, monkeypatch):
    for name in ("a.wav", "sub/b.mp3", "sub/c.txt", "sub/.d.wav", "x/a.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"sound")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from a pipe")))
    named = [tmp_path, tmp_path / "x" / "*.wav", Path("-")]
    with recordings_named(named) as found:
        assert [one.name for one in found[:-1]] == [
            str(tmp_path / name) for name in ("a.wav", "sub/b.mp3", "x/a.wav")
        ], "each once"
        assert [one.below.as_posix() for one in found] == ["a", "sub/b", "x/a", "stdin"]
        assert found[-1].path.read_bytes() == b"from a pipe"


def test_two_recordings_never_share_an_output(tmp_path):
    paths = [tmp_path / name for name in ("one/a.wav", "one/a.mp3", "two/A.wav")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"sound")
    with recordings_named(paths) as found:
        assert [str(one.below) for one in found] == ["a.wav", "a.mp3", "A.wav-2"]


def test_what_names_nothing_is_refused(tmp_path):
    for named, told in ((tmp_path / "lost.wav", "no such file: .*lost.wav"), (tmp_path, "no audio file is in this")):
        with pytest.raises(UserError, match=told), recordings_named([named]):
            pass


@pytest.mark.skipif(not LONG.is_dir(), reason="the measuring data is not here")
@pytest.mark.parametrize("name", ["azure_audio1.wav", "jfk.flac", "picovoice_test_ko.wav"])
def test_speech_of_people_is_found(name):
    """Most of these recordings is speech, and their beginning or end is not."""
    windows = list(speech_windows(read_blocks(LONG / name), Windowing(10.0)))
    heard = sum(len(window.waveform) for window in windows) / SAMPLE_RATE
    assert 0.5 < heard * SAMPLE_RATE / len(load_audio(LONG / name)) <= 1.0
