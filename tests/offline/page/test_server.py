"""The server: who may come, and what it takes of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.offline.batcher import Batcher
from asr.offline.decoding import Spoken
from asr.offline.page.server import _check, read_users, serve
from asr.offline.page.service import Service
from asr.offline.page.wording import Refused
from asr.offline.speech import Window, Windowing
from asr.offline.transcripts import Shape
from asr.offline.word_times import Word
from asr.shared.audio import SAMPLE_RATE, load_audio
from asr.shared.cli import parse
from config import Inference
from tests.conftest import DEMO_CORPUS
from utils import UserError

CLIP = next((DEMO_CORPUS / "clips").glob("*test_0000.mp3"))


def written(file: Path, content: str, mode: int = 0o600) -> Path:
    file.write_text(content, encoding="utf-8")
    file.chmod(mode)
    return file


def test_who_may_come(tmp_path):
    users = read_users(written(tmp_path / "users", "# the team\nkim:a:b c\n\n이:비밀\n"))
    assert users == {"kim": "a:b c", "이": "비밀"}
    may_come = _check(users)
    assert may_come("kim", "a:b c")
    assert may_come("이", "비밀")
    for name, password in [("kim", "비밀"), ("kim", "\ud800"), ("kim", ""), ("nobody", ""), ("", ""), ("이", "비")]:
        assert not may_come(name, password)


@pytest.mark.parametrize(
    ("content", "told"),
    [("kim", "line 1: it must be name:password"), ("a:b\n:c", "line 2"), ("a:", "line 1"), ("# none", "names nobody")],
)
def test_a_line_that_is_wrong_is_named_and_not_shown(tmp_path, content, told):
    with pytest.raises(UserError, match=told):
        read_users(written(tmp_path / "users", content))


@pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")
def test_passwords_that_others_can_read_are_refused(tmp_path):
    with pytest.raises(UserError, match="chmod 600"):
        read_users(written(tmp_path / "users", "a:b", 0o640))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--auth-file", "lost"], "--auth-file lost cannot be read"),
        (["--ssl-certfile", __file__, "--ssl-keyfile", __file__], "--ssl-keyfile .* cannot be used"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 --port 0 cannot be had"),
        (["--ssl-certfile", "lost.pem", "--ssl-keyfile", "lost.key"], "--ssl-certfile lost.pem: there is no such file"),
    ],
)
def test_a_file_that_is_not_there_is_told_before_any_model_is_opened(flags, told):
    config, _ = parse(Inference, [*flags, "--bundle-dir", "lost", "--port", "0"])
    with pytest.raises(UserError, match=told):
        serve(config, Shape())


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--host", "example.com"], "--host is example.com, but it must be an address"),
        (["--ssl-certfile", "a.pem"], "--ssl-certfile and --ssl-keyfile go together"),
        (["--max-queue", "0"], "--max-queue is 0, but it must be at least 1"),
        (["--max-upload-minutes", "0"], "it must be a number above 0"),
        (["--compare", "base", "--engine", "ctranslate2"], "--compare base runs both in one engine"),
        (["--engine", "ctranslate2", "--model", "x"], "--engine ctranslate2 takes the export of a run"),
        (["--engine", "ctranslate2", "--quantization", "4bit"], "has no 4bit weights"),
    ],
)
def test_flags_that_cannot_be(flags, told):
    with pytest.raises(UserError, match=told):
        parse(Inference, flags)


# What it takes


def hear(windows: list[Window]) -> list[Spoken]:
    lengths = [len(window.waveform) / SAMPLE_RATE for window in windows]
    return [Spoken("네", [Word("네", 0.0, seconds)]) for seconds in lengths]


@pytest.fixture
def service():
    batcher = Batcher({"tuned": hear, "base": lambda windows: [Spoken("아니")] * len(windows)}, 4)
    yield Service(batcher, Windowing(30.0), most_minutes=0.5, at_once=2)
    batcher.close()


def test_a_recording_with_and_without_the_base(service):
    shares: list[float] = []
    both = service.transcribe(CLIP, "내 녹음.mp3", Shape(), compare=True, heard=shares.append)
    assert (both.name, both.text, both.base) == ("내 녹음.mp3", "네", "아니")
    assert shares[-1] == pytest.approx(1.0, abs=0.05)
    assert service.transcribe(CLIP, "a", Shape()).base is None


@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg"])
def test_what_is_too_long_is_refused_whatever_its_header_says(service, tmp_path, ending):
    sound = np.tile(load_audio(CLIP), 20)
    assert len(sound) > 31 * SAMPLE_RATE
    soundfile.write(tmp_path / f"long{ending}", sound, SAMPLE_RATE)
    with pytest.raises(Refused, match=r"longer than 0\.5 minutes"):
        service.transcribe(tmp_path / f"long{ending}", "a", Shape())
    if ending == ".ogg":
        stream = tmp_path / "stream.ogg"
        # Without its end, an Ogg does not tell how long it is.
        stream.write_bytes((tmp_path / "long.ogg").read_bytes()[:-2000])
        with pytest.raises(Refused, match=r"longer than 0\.5 minutes"):
            service.transcribe(stream, "a", Shape())


def test_what_is_no_audio_is_refused(service, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no audio")
    with pytest.raises(Refused, match="cannot be read as audio: unreadable audio"):
        service.transcribe(tmp_path / "a.wav", "a", Shape())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate")])
def test_no_memory_is_told_in_words(error):
    def full(_windows: list[Window]) -> list[Spoken]:
        raise error

    batcher = Batcher({"tuned": full}, 4)
    with pytest.raises(Refused, match="not enough memory"):
        Service(batcher, Windowing(30.0), 10, 1).transcribe(CLIP, "a", Shape())
    batcher.close()
