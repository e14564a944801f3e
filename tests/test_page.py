"""The demo page as visitors and programs use it: in Chromium, through gradio_client, and by many at once."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from gradio_client import Client, handle_file

from asr.shared.audio import SAMPLE_RATE, load_audio
from tests.conftest import DEMO_CORPUS, DEMO_MODEL, ROOT, script
from tests.pages import BROWSER, DRIVER, Page, browser, served_page

CLIPS = sorted((DEMO_CORPUS / "clips").glob("*test_00*.mp3"))
# The embedded Whisper hears this one without an error.
CLEAR, SAID = DEMO_CORPUS / "clips" / "common_voice_ko_test_0007.mp3", "연구소에서 협상이 다시 시작되었습니다"
needs_browser = pytest.mark.skipif(not BROWSER or not DRIVER, reason="needs Chromium and chromedriver")


@pytest.fixture(scope="module")
def made(tmp_path_factory, mini_release) -> tuple[object, ...]:
    """Flags that name a bundle with the embedded Whisper, and a run that has learned a little."""
    folder = tmp_path_factory.mktemp("made")
    where = ("--bundle-dir", folder / "bundle")
    script("run_online_setup.py", "--model-name-or-path", DEMO_MODEL, "--common-voice", mini_release, *where,
           "--num-proc", 1, check=True)  # fmt: skip
    where += ("--output-dir", folder / "runs")
    script("train_offline.py", *where, "--run-name", "night", "--audio-layout", "trimmed", "--max-steps", 6,
           "--warmup-steps", 0, check=True)  # fmt: skip
    script("evaluate_model.py", *where, "--windows", "own", check=True)
    return where


@pytest.fixture(scope="module")
def page(made, tmp_path_factory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("page")
    with served_page(folder, *made, "--max-upload-mb", 1) as page:
        yield page
        assert page.uploads == []
    assert list(folder.glob("whisper-page-*")) == [], "the process takes everything of visitors with it"


@pytest.fixture(scope="module")
def client(page) -> Client:
    return Client(page.address, verbose=False)


def recording(folder: Path, seconds: float) -> Path:
    """A wav of clips with a second of silence between them."""
    parts: list[np.ndarray] = []
    for clip in CLIPS:
        parts += [load_audio(clip), np.zeros(SAMPLE_RATE, dtype=np.float32)]
    soundfile.write(folder / "긴 녹음.wav", np.concatenate(parts)[: int(seconds * SAMPLE_RATE)], SAMPLE_RATE)
    return folder / "긴 녹음.wav"


# Programs


def test_what_the_command_writes_a_program_gets(client, page, made):
    clip = CLIPS[0]
    for form, flags in [("txt", ()), ("srt", ()), ("json", ("--timestamps", "word", "--compare", "base"))]:
        command = script("inference.py", clip, *made, "--format", form, *flags, check=True).stdout
        asked = {"format": form} | ({"timestamps": "word", "compare": True} if flags else {})
        answer = client.predict(audio=handle_file(clip), api_name="/transcribe", **asked)
        if form == "json":
            command, answer = (json.loads(text) | {"file": ""} for text in (command, answer))
        assert answer == command
    assert page.uploads == []


def test_a_bad_file_is_told_and_gone(client, page):
    with pytest.raises(Exception, match="cannot be read as audio: unreadable audio"):
        client.predict(handle_file(ROOT / "utils.py"), api_name="/transcribe")
    with pytest.raises(Exception, match="format is txt, srt"):
        client.predict(handle_file(CLIPS[0]), "doc", api_name="/transcribe")
    with pytest.raises(Exception, match="format is txt, srt"):
        client.predict(handle_file(CLIPS[0]), ["txt"], api_name="/transcribe")
    assert page.uploads == []


@pytest.mark.parametrize("path", ["/etc/hostname", str(CLIPS[0]), "https://example.com/a.mp3", "", 7, None])
def test_no_file_of_the_machine_is_read(page, path):
    """Whatever a program says that it has uploaded."""
    sent = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
    for audio in (sent, path):
        answer = call(page, audio)
        assert "complete" not in answer
        assert "event: error" in answer


@pytest.mark.parametrize("file", [ROOT / "config.py", CLIPS[0], "/etc/hostname"])
def test_no_file_of_the_machine_is_served(page, file):
    assert httpx.get(f"{page.address}gradio_api/file={file}").status_code in (403, 404)


def call(page: Page, audio: object) -> str:
    address = f"{page.address}gradio_api/call/transcribe"
    event = httpx.post(address, json={"data": [audio, "txt", "auto", False]}, timeout=60).json()["event_id"]
    return httpx.get(f"{address}/{event}", timeout=60).text


def test_a_file_that_is_too_large_is_turned_away(page, tmp_path):
    (tmp_path / "large.wav").write_bytes(bytes(1_100_000))
    with open(tmp_path / "large.wav", "rb") as file:
        answer = httpx.post(f"{page.address}gradio_api/upload", files={"files": ("large.wav", file)})
    assert answer.status_code == 413


def test_many_at_once_get_what_is_theirs(page, client):
    """Some of them the very same recording; nobody's is deleted under another's hands."""
    clips = CLIPS[:8] * 3
    alone = {clip: client.predict(handle_file(clip), api_name="/transcribe") for clip in CLIPS[:8]}
    clients = [Client(page.address, verbose=False) for _ in range(8)]
    ready = threading.Barrier(8)

    def ask(number: int) -> list[str]:
        ready.wait(60)
        own = clips[number::8]
        return [clients[number].predict(handle_file(clip), api_name="/transcribe") for clip in own]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    given = [answer for each in answers for answer in each]
    wanted = [alone[clip] for number in range(8) for clip in clips[number::8]]
    # Windows are cut to the longest of a batch, which others' recordings change: now and then a syllable differs.
    assert sum(a == b for a, b in zip(given, wanted, strict=True)) >= 0.8 * len(wanted)
    assert len(given) == len(clips)
    assert all(answer.strip() for answer in given)
    assert page.uploads == []


def test_who_may_come_and_what_is_too_long(tmp_path):
    (tmp_path / "users").write_text("kim:secret word", encoding="utf-8")
    (tmp_path / "users").chmod(0o600)
    (tmp_path / "own").mkdir()
    flags = ("--model", DEMO_MODEL, "--auth-file", tmp_path / "users", "--max-upload-minutes", 0.1)
    with served_page(tmp_path / "own", *flags) as page:
        assert httpx.get(f"{page.address}config").status_code == 401
        assert httpx.post(f"{page.address}gradio_api/upload", files={"files": ("a.wav", b"a")}).status_code == 401
        with pytest.raises(Exception, match="Could not login"):
            Client(page.address, verbose=False, auth=("kim", "guess"))
        client = Client(page.address, verbose=False, auth=("kim", "secret word"))
        assert client.predict(handle_file(CLEAR), api_name="/transcribe").strip()
        with pytest.raises(Exception, match=r"longer than 0\.1 minutes"):
            client.predict(handle_file(recording(tmp_path, 10)), api_name="/transcribe")


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_https(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=box",
                    "-keyout", key, "-out", certificate], check=True, capture_output=True)  # fmt: skip
    (tmp_path / "own").mkdir()
    flags = ("--model", DEMO_MODEL, "--ssl-certfile", certificate, "--ssl-keyfile", key)
    with served_page(tmp_path / "own", *flags) as page:
        assert page.address.startswith("https://127.0.0.1:")
        assert httpx.get(f"{page.address}config", verify=False).status_code == 200


def test_a_port_that_is_taken_is_told_in_a_line(page):
    port = page.address.rstrip("/").rpartition(":")[2]
    done = script("inference.py", "--model", DEMO_MODEL, "--port", port)
    assert done.returncode == 2
    assert f"--host 127.0.0.1 --port {port} cannot be had" in done.stderr.splitlines()[-1]


# Visitors


@needs_browser
def test_upload_read_listen_and_keep(page, tmp_path):
    """In Korean, from the file to the subtitles; the page asks nobody but its own server."""
    with browser(tmp_path, "ko") as visitor:
        visitor.open(page)
        assert visitor.texts(".head h1") == ["음성 받아쓰기"]
        assert visitor.texts("#transcribe") == ["받아쓰기"]
        visitor.upload(recording(tmp_path, 14))
        visitor.transcribe()
        assert visitor.texts(".card h3") == ["미세 조정한 모델", "기본 모델"]
        tuned, base = visitor.texts(".card .text")
        assert re.search("[가-힣]", tuned)
        assert bool(visitor.all(".card mark")) == (tuned != base)
        assert page.uploads == [], "the upload is gone, and is played all the same"
        listen(visitor)
        keep(visitor, tmp_path)
        # Once more: what is gone there is brought again.
        visitor.transcribe()
        assert visitor.texts(".card .text") == [tuned, base]
        assert page.uploads == []
        asked = visitor.asked()
        assert len(asked) > 10
        assert {url for url in asked if not url.startswith((page.address, page.address.replace("http", "ws")))} == set()


def listen(visitor) -> None:
    """Click a time: its segment plays, is shown as the one that plays, and ends where it ends."""
    visitor.until(lambda: visitor.run("document.querySelector('.player').readyState") >= 2)
    button = visitor.all(".segments button")[1]
    start, end = (float(button.get_attribute(f"data-{name}")) for name in ("start", "end"))
    button.click()
    visitor.until(lambda: visitor.run("document.querySelector('.player').currentTime") > start + 0.05)
    assert visitor.texts(".segments li.now span") == [visitor.texts(".segments span")[1]]
    visitor.until(lambda: visitor.run("document.querySelector('.player').paused"))
    assert visitor.run("document.querySelector('.player').currentTime") == pytest.approx(end, abs=0.5)


def keep(visitor, folder: Path) -> None:
    """Download every format."""
    for link in visitor.all(".downloads a"):
        name, content = link.get_attribute("download"), link.get_attribute("href").partition("base64,")[2]
        link.click()
        file = folder / name
        visitor.until(lambda file=file: file.is_file() and file.stat().st_size)
        assert file.read_bytes() == base64.b64decode(content)
    assert {file.suffix for file in folder.glob("긴 녹음.*")} == {".wav", ".txt", ".srt", ".vtt", ".tsv", ".json"}
    assert (folder / "긴 녹음.srt").read_text(encoding="utf-8").startswith("1\n00:00:0")


@needs_browser
def test_english_on_a_phone(page, tmp_path):
    """A sample, and what is said in it; the run's figures; nothing is wider than the screen."""
    with browser(tmp_path, "en-US", (390, 844)) as visitor:
        visitor.open(page)
        assert visitor.texts(".head h1") == ["Speech to text"]
        sample = visitor.until(lambda: [b for b in visitor.all("button") if re.search("[가-힣]", b.text)])[0]
        said = sample.text
        visitor.driver.execute_script("arguments[0].scrollIntoView()", sample)
        sample.click()
        visitor.until(lambda: visitor.run("document.querySelector('#reference textarea').value") == said)
        visitor.until(lambda: visitor.all("[data-testid=waveform-controls], .waveform-container"))
        visitor.transcribe()
        assert visitor.texts(".said") == [f"What is said {said}"]
        assert all(re.search(r"\d+ of \d+ characters wrong, CER \d", told) for told in visitor.texts(".errors"))
        assert len(visitor.texts(".errors")) == 2
        visitor.driver.find_element("xpath", "//button[contains(., 'How good')]").click()
        visitor.until(lambda: any("utterances of the test split" in told for told in visitor.texts("#figures p")))
        assert "night/evaluation/report.html" in " ".join(visitor.texts("#figures p"))
        wide = visitor.run("document.documentElement.scrollWidth")
        assert wide <= visitor.run("window.innerWidth")


@needs_browser
def test_what_the_microphone_hears(page, tmp_path):
    """A clip at Chromium's fake microphone is written as the clip is."""
    sound = np.concatenate([load_audio(CLEAR), np.zeros(SAMPLE_RATE, np.float32)])
    soundfile.write(tmp_path / "voice.wav", sound, SAMPLE_RATE)
    with browser(tmp_path, "en", voice=tmp_path / "voice.wav") as visitor:
        visitor.open(page)
        visitor.all('button[aria-label="Record audio"]')[0].click()
        visitor.until(lambda: visitor.all(".record-button"))[0].click()
        stop = visitor.until(lambda: [button for button in visitor.all(".stop-button") if button.is_displayed()])[0]
        # Wherever it began, it is there once as a whole.
        threading.Event().wait(2 * len(sound) / SAMPLE_RATE)
        stop.click()
        visitor.until(lambda: visitor.all("[data-testid=waveform-controls], .waveform-container"))
        visitor.transcribe()
        written = visitor.texts(".card .text")[0]
        alone = Client(page.address, verbose=False).predict(handle_file(CLEAR), api_name="/transcribe").strip()
        assert len(set(written.split()) & set(alone.split())) >= 0.5 * len(alone.split()), (written, alone)
        assert page.uploads == []


@needs_browser
def test_what_is_wrong_is_told_on_the_page(page, tmp_path):
    (tmp_path / "notes.wav").write_bytes(b"these are notes" * 99)
    with browser(tmp_path, "ko") as visitor:
        visitor.open(page)
        visitor.press()
        assert "먼저 파일을 올리거나 녹음하세요." in visitor.toast()
        visitor.run("document.querySelectorAll('.toast-close').forEach(button => button.click())")
        visitor.until(lambda: not visitor.all(".toast-body"))
        visitor.upload(tmp_path / "notes.wav")
        visitor.press()
        assert "이 파일은 오디오로 읽을 수 없습니다" in visitor.toast()
        assert page.uploads == []
