"""Uploads: each is there for its use, whoever else sends the same, and gone after it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from asr.offline.page import uploads as module
from asr.offline.page.uploads import ABANDONED_S, BUSY, Uploads, UploadsSeen
from asr.offline.page.wording import Refused


@pytest.fixture
def uploads(tmp_path):
    return Uploads(tmp_path)


def upload(uploads: Uploads, content: str = "sound") -> Path:
    """Where Gradio puts it: the same content in the same place."""
    file = uploads.folder / content / "recording.wav"
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    uploads.came(file)
    return file


def test_an_upload_is_gone_after_its_use(uploads):
    file = upload(uploads)
    with uploads.using(file) as path:
        assert path.read_text() == "sound"
    assert list(uploads.folder.iterdir()) == []
    with pytest.raises(Refused, match="not there any more"), uploads.using(file):
        pass


def test_it_is_gone_after_a_failure_too(uploads):
    file = upload(uploads)
    with pytest.raises(ZeroDivisionError), uploads.using(file):
        raise ZeroDivisionError
    assert not file.exists()


def test_the_same_content_of_two_stays_for_both(uploads):
    file = upload(uploads)
    assert upload(uploads) == file
    with uploads.using(file):
        assert upload(uploads) == file
        with uploads.using(file):
            pass
        assert file.exists(), "a third one waits, and the first is not done"
    with uploads.using(file):
        assert file.exists()
    assert not file.exists()


@pytest.mark.parametrize("other", ["elsewhere/notes.txt", "../notes.txt"])
def test_what_was_not_uploaded_is_refused_and_stays(uploads, tmp_path, other):
    file = (tmp_path / other).resolve()
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(Refused), uploads.using(file):
        pass
    assert file.read_text() == "mine"


def aged(file: Path, seconds: float) -> Path:
    long_ago = time.time() - seconds
    os.utime(file, (long_ago, long_ago))
    return file


def test_what_nobody_uses_goes_in_time(uploads):
    old, new = aged(upload(uploads, "old"), ABANDONED_S + 1), upload(uploads, "new")
    with uploads.using(new):
        uploads.clean()
        assert old.exists(), "while something is under way, it may wait for its turn"
        aged(old, BUSY * ABANDONED_S + 1)
        uploads.clean()
        assert not old.exists(), "but not for ever"
        assert new.exists()
    old = aged(upload(uploads, "old"), ABANDONED_S + 1)
    uploads.clean()
    assert not old.exists()


def test_uploads_that_broke_off_go_too(uploads):
    """What Gradio writes before it knows the content's name lies in the folder itself."""
    broken, coming = uploads.folder / "tmp1", uploads.folder / "tmp2"
    for file in (broken, coming):
        file.write_bytes(b"half")
    aged(broken, ABANDONED_S + 1)
    uploads.clean()
    assert (broken.exists(), coming.exists()) == (False, True)


def test_what_is_open_goes_later_and_nobody_is_troubled(uploads, monkeypatch):
    """As on Windows, while a browser fetches it."""
    file = upload(uploads)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
        with uploads.using(file):
            pass
    assert file.exists()
    uploads.clean()
    assert not file.exists()


def test_the_middleware_notes_what_the_server_answers(uploads, monkeypatch):
    """Also where the answer comes in parts; other answers it passes on unread."""
    file = uploads.folder / "a" / "b.wav"
    answers = {"/gradio_api/upload": [b'["', str(file).encode(), b'"]'], "/gradio_api/call": [json.dumps([1]).encode()]}

    async def server(scope, _receive, send):
        parts = answers[scope["path"]]
        await send({"type": "http.response.start", "status": 200})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": part is not parts[-1]})

    async def ask(path: str, method: str = "POST") -> bytes:
        sent = []

        async def send(message):
            sent.append(message)

        await UploadsSeen(server, uploads)({"type": "http", "method": method, "path": path}, None, send)
        return b"".join(message.get("body", b"") for message in sent)

    noted = []
    monkeypatch.setattr(module.Uploads, "came", lambda self, path: noted.append(path))
    for path, parts in answers.items():
        assert asyncio.run(ask(path)) == b"".join(parts)
    assert noted == [file]
