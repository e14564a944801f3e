"""inference.py as it is used: folders with bad files among them, subtitles, any model, and an end at any moment."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from asr.offline.systems import Opener, Speaking, find_systems
from asr.shared.audio import load_audio
from config import Decoding, Device, UseRuns
from tests.conftest import DEMO_CORPUS, DEMO_MODEL
from tests.sessions import Session, Sessions

CLIPS = sorted((DEMO_CORPUS / "clips").glob("*test_00[01]*.mp3"))[:18]


@pytest.fixture(scope="module")
def sessions(tmp_path_factory) -> Iterator[Sessions]:
    sessions = Sessions(tmp_path_factory.mktemp("sessions"))
    yield sessions
    sessions.close()


@pytest.fixture
def transcribe(sessions):
    """Transcribe with the demo's Whisper, which needs no bundle."""

    def run(*flags: object, **how: object) -> Session:
        return sessions.run("--model", DEMO_MODEL, *flags, script="inference", **how)

    return run


@pytest.fixture
def recordings(tmp_path) -> Path:
    """Twenty recordings in a folder, two of them broken."""
    folder = tmp_path / "녹음"
    (folder / "아침").mkdir(parents=True)
    for number, clip in enumerate(CLIPS):
        shutil.copy(clip, folder / ("아침" if number % 2 else ".") / f"call-{number:02}.mp3")
    (folder / "broken.wav").write_bytes(b"no audio")
    (folder / "아침" / "empty.m4a").write_bytes(b"")
    return folder


def heard_alone(clips: list[Path]) -> list[str]:
    """What the model makes of whole clips."""
    opener = Opener(Device(cuda_visible_devices=""), Decoding(), Speaking("Korean", "transcribe"))
    (system,) = find_systems(UseRuns(model=(DEMO_MODEL,)), None)
    with opener.open(system) as transcriber:
        return transcriber.transcribe([load_audio(clip) for clip in clips])


def test_a_folder_with_broken_files(transcribe, recordings, tmp_path):
    """Those that are good get their files, and those that are not are listed with their reasons."""
    out = tmp_path / "out"
    done = transcribe(recordings, "--format", "srt", "--transcript-dir", out)
    assert done.wait() == 2
    assert f"{recordings / 'broken.wav'}: unreadable audio: " in done.told
    assert f"{recordings / '아침' / 'empty.m4a'}: " in done.told
    assert "error: 2 of 20 files could not be read" in done.told
    files = sorted(file.relative_to(out).as_posix() for file in out.rglob("*.srt"))
    assert files == sorted(f"{'아침/' if n % 2 else ''}call-{n:02}.srt" for n in range(18))
    for file in out.rglob("*.srt"):
        times = re.findall(r"(\d\d:\d\d:\d\d,\d{3})", file.read_text(encoding="utf-8"))
        assert times == sorted(times)
        assert len(times) >= 2
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.srt")}
    again = transcribe(recordings, "--format", "srt", "--transcript-dir", out)
    assert "18 of 20 are done already" in again.told
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.srt")} == before
    os.utime(recordings / "call-00.mp3")
    assert "17 of 20 are done already" in transcribe(recordings, "--format", "srt", "--transcript-dir", out).told


def test_texts_are_those_of_the_clips(transcribe, tmp_path):
    done = transcribe(*CLIPS[:5], "--format", "json", "--transcript-dir", tmp_path)
    assert done.wait() == 0, done.told
    found = [json.loads((tmp_path / f"{clip.stem}.json").read_text(encoding="utf-8")) for clip in CLIPS[:5]]
    assert [each["text"] for each in found] == heard_alone(CLIPS[:5])
    assert [each["file"] for each in found] == list(map(str, CLIPS[:5]))


def test_stopped_it_goes_on_with_the_rest(transcribe, tmp_path, recordings):
    """What is decoded stays, whatever ends it."""
    flags = (recordings, "--transcript-dir", tmp_path / "out", "--per-device-eval-batch-size", 1)
    stopped = transcribe(*flags, raise_in_batch=[5, signal.SIGINT])
    assert stopped.wait() == 75
    assert "error: interrupted: the same command goes on with the rest" in stopped.told
    assert transcribe(*flags).wait() == 2
    assert len(list((tmp_path / "out").rglob("*.txt"))) == 18


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--format", "srt", "--timestamps", "none"), "--timestamps none leaves nothing of --format srt"),
        (("--format", "vtt", "--compare", "base"), "--compare base needs --format txt or json"),
        (("--compare", "base"), "--compare base goes with a run, not with --model"),
    ],
)
def test_flags_that_do_not_go_together(flags, told):
    from asr.shared.cli import parse
    from config import Inference
    from utils import UserError

    with pytest.raises(UserError, match=told):
        parse(Inference, ["--model", str(DEMO_MODEL), str(CLIPS[0]), *flags])


def test_what_is_not_there_is_told_in_a_line(transcribe, tmp_path):
    done = transcribe(tmp_path / "lost.wav")
    assert done.wait() == 2
    assert f"error: there is no such file: {tmp_path / 'lost.wav'}" in done.told
