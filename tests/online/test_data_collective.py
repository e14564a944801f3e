"""Mozilla Data Collective: the newest release comes whole through every kind of trouble, or the user learns what to do.

A local server speaks the part of its API that the package uses, and fails as it is told to.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import random
import shutil
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from asr.online.sources import collective_client
from asr.online.sources.common_voice import read
from asr.online.sources.data_collective import download, newest_release
from config import CommonVoice
from tests.conftest import script
from tests.online.test_common_voice import archive_of, assert_is_the_release, write_locale
from utils import UserError, WhisperError

KEY = "secret-key-0123"
SIGNATURE = "X-Signature=secret-signature"
NAME = "mcv-scripted-ko-v27.0.tar.gz"
# The package writes 64 KiB at a time, and what has come of the last of them is lost when a connection breaks.
BEFORE_THE_CUT = 200_000
CHUNK = 20_000


class Collective(ThreadingHTTPServer):
    """The API and its storage; `faults` are lists of what goes wrong next, one a request."""

    daemon_threads = True

    def __init__(self, archive: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.archive = archive
        self.checksum: str | None = hashlib.sha256(archive).hexdigest()
        self.datasets = [self.entry("Common Voice Scripted Speech 27.0 - Korean", "cko27", filename=NAME)]
        self.faults: dict[str, list[Any]] = {"list": [], "details": [], "session": [], "storage": []}
        self.log: list[tuple[str, str]] = []
        self.storage = self.url
        self.filters = True

    def entry(self, name: str, dataset_id: str, **changes: Any) -> dict[str, Any]:
        """What the catalogue says of one dataset."""
        return {
            "id": dataset_id, "name": name, "slug": dataset_id, "locale": "ko", "task": "ASR", "format": "MP3",
            "filename": f"{dataset_id}.tar.gz", "sizeBytes": len(self.archive), "checksum": self.checksum,
            "license": "Creative Commons Zero", "licenseAbbreviation": "CC0-1.0", "isPaid": False,
            "organization": {"name": "Common Voice", "slug": "common-voice"}, "createdAt": "2026-09-17T00:00:00.000Z",
            "datasetUrl": f"https://mozilladatacollective.com/datasets/{dataset_id}", **changes,
        }  # fmt: skip

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is part of the tests."""

    def asked(self, kind: str) -> list[str]:
        """What was asked of one part of the server; of the storage, the ranges."""
        return [what for logged, what in self.log if logged == kind]


class _Handler(BaseHTTPRequestHandler):
    server: Collective

    def log_message(self, *_: object) -> None:
        """Keep standard error for what is tested."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path == "/storage":
            return self.send_archive()
        if address.path == "/api/datasets":
            return self.answer("list", lambda: self.listing(parse_qs(address.query)))
        dataset_id = address.path.removeprefix("/api/datasets/")
        found = [entry for entry in self.server.datasets if entry["id"] == dataset_id]
        return self.answer("details", lambda: found[0], dataset_id)

    def do_POST(self) -> None:
        dataset_id = self.path.removeprefix("/api/datasets/").removesuffix("/download")
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self.server.faults["session"].insert(0, 401)
        self.answer("session", self.session, dataset_id)

    def session(self) -> dict[str, Any]:
        return {
            "downloadUrl": f"{self.server.storage}/storage?{SIGNATURE}", "downloadToken": "dlt_secret",
            "sizeBytes": str(len(self.server.archive)), "checksum": self.server.checksum, "filename": NAME,
            "contentType": "application/gzip", "expiresAt": "2027-01-01T00:00:00.000Z", "accessRecordId": "crecord",
        }  # fmt: skip

    def listing(self, query: dict[str, list[str]]) -> dict[str, Any]:
        words, size, page = query["q"][0].split(), int(query["limit"][0]), int(query["page"][0])
        found = [
            entry
            for entry in self.server.datasets
            if not self.server.filters or (entry["locale"] in query["locale"] and entry["task"] in query["task"])
            if all(word in entry["name"].lower() for word in words)
        ]
        return {"items": found[(page - 1) * size : page * size], "total": len(found)}

    def answer(self, kind: str, make: Any, what: str = "") -> None:
        self.server.log.append((kind, what))
        faults = self.server.faults[kind]
        fault = faults.pop(0) if faults else 200
        status, headers = fault if isinstance(fault, tuple) else (fault, {})
        body = json.dumps(make() if status == 200 else {"error": f"told {status}"}).encode()
        if fault == "html":
            status, body = 200, b"<html>please log in</html>"
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def send_archive(self) -> None:
        """Send the archive from where the client wants it, as the next fault has it."""
        wanted = self.headers.get("Range", "")
        self.server.log.append(("storage", wanted))
        fault = self.server.faults["storage"].pop(0) if self.server.faults["storage"] else ""
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and fault != "ignore range" else 0
        body = self.server.archive[start:]
        if isinstance(fault, int) or start >= len(self.server.archive):
            self.send_response(fault or 416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "wrong bytes":
            body = bytes(len(body))
        self.send_response(206 if start else 200)
        if fault != "end early, unannounced":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault in ("cut", "end early, unannounced"):
            body = body[:BEFORE_THE_CUT]
        for at in range(0, len(body), CHUNK):
            self.wfile.write(body[at : at + CHUNK])
            if fault == "interrupt" and at >= BEFORE_THE_CUT:
                self.wfile.flush()
                time.sleep(0.1)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                time.sleep(0.2)
                fault = ""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("release")
    release = write_locale(folder / "cv-corpus-27.0" / "ko").parent
    (release / "ko" / "clips" / "in_no_table.mp3").write_bytes(random.Random(0).randbytes(2_000_000))
    return archive_of(release, folder / NAME).read_bytes()


@pytest.fixture
def collective(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collective]:
    """The server, the environment that leads to it, and hardly any pause between attempts."""
    server = Collective(archive)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("MDC_API_URL", f"{server.url}/api/")
    monkeypatch.setenv("MDC_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(collective_client, "FIRST_PAUSE_S", 0.001)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def told(capfd: pytest.CaptureFixture[str]) -> Iterator[io.StringIO]:
    """All that is logged by anyone; no secret is among it, and nothing is on standard output."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    ours = logging.getLogger("whisper")
    level = ours.level
    ours.setLevel(logging.DEBUG)
    for logger in (ours, logging.getLogger("datacollective")):
        logger.addHandler(handler)
    yield stream
    for logger in (ours, logging.getLogger("datacollective")):
        logger.removeHandler(handler)
    ours.setLevel(level)
    output = capfd.readouterr()
    assert [word for word in (KEY, SIGNATURE, "dlt_secret") if word in stream.getvalue() + output.err] == []
    assert output.out == ""


def assert_right(path: Path, folder: Path, archive: bytes) -> None:
    """The archive is there whole, and nothing of an attempt is left."""
    assert path == folder / NAME
    assert path.read_bytes() == archive
    assert sorted(file.name for file in folder.iterdir()) == [NAME, f"{NAME}.verified"]


def assert_fails(kind: type[WhisperError], locale: str, folder: Path, *words: str) -> None:
    """It ends in one line that holds all these words, and no secret."""
    with pytest.raises(kind) as raised:
        download(locale, folder)
    message = str(raised.value)
    assert type(raised.value) is kind
    assert "\n" not in message
    assert [word for word in words if word not in message] == []
    assert [secret for secret in (KEY, SIGNATURE) if secret in message] == []


# The catalogue


def test_the_newest_scripted_release_is_taken(collective: Collective, tmp_path: Path, told: io.StringIO) -> None:
    """As numbers 27 is newer than 9; of one version the whole is taken, not an excerpt; other kinds are passed over."""
    collective.datasets += [
        collective.entry("Common Voice Scripted Speech 9.0 - Korean", "cko9", sizeBytes=10**10),
        collective.entry("Common Voice Scripted Speech 27.0 - Korean (Female)", "cfemale", sizeBytes=10),
        collective.entry("Common Voice Spontaneous Speech 28.0 - Korean", "cspontaneous"),
        collective.entry("Common Voice Scripted Speech 28.0 - Japanese", "cja28", locale="ja"),
        collective.entry("Common Voice Scripted Speech 29.0 - Korean", "cempty", sizeBytes=None, filename=None),
        collective.entry("Common Voice Scripted Speech 29.0 - Korean", "cevil", filename="a/../../evil.tar.gz"),
        collective.entry("Common Voice Scripted Speech 29.0 - Korean", "chidden", filename="..\\evil.tar.gz"),
        collective.entry("Speech like Common Voice Scripted Speech 30.0", "clike"),
    ]
    assert newest_release("ko").dataset_id == "cko27"
    download("ko", tmp_path)
    assert collective.asked("session") == ["cko27"]
    for word in ("27.0 - Korean", "cko27", "2.02 MB", "CC0-1.0", "https://mozilladatacollective.com/datasets/cko27"):
        assert word in told.getvalue()


def test_a_catalogue_of_several_pages_is_read_to_its_end(collective: Collective) -> None:
    newest = collective.datasets.pop()
    collective.datasets += [collective.entry(f"Common Voice Scripted Speech 1.{n} - x", f"c{n}") for n in range(230)]
    collective.datasets.append(newest)
    assert newest_release("ko").dataset_id == "cko27"
    assert len(collective.asked("list")) == 3


def test_another_language_is_not_taken_even_if_it_is_listed(collective: Collective) -> None:
    collective.datasets.append(collective.entry("Common Voice Scripted Speech 28.0 - Japanese", "cja", locale="ja"))
    collective.filters = False
    assert newest_release("ko").dataset_id == "cko27"


def test_a_language_without_a_release_is_told(collective: Collective, tmp_path: Path) -> None:
    assert_fails(UserError, "xx", tmp_path, "'xx'", "nothing", "--language-abbr", "--common-voice")
    collective.datasets = [collective.entry("Common Voice Spontaneous Speech 5.0 - Korean", "cspontaneous")]
    assert_fails(UserError, "ko", tmp_path, "'ko'", "Spontaneous Speech 5.0")


@pytest.mark.usefixtures("collective")
def test_the_catalogue_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MDC_API_KEY")
    assert newest_release("ko").dataset_id == "cko27"


# What the user has to do


def test_without_a_key_nothing_is_asked(
    collective: Collective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MDC_API_KEY")
    assert_fails(UserError, "ko", tmp_path, "MDC_API_KEY", "https://mozilladatacollective.com/profile")
    assert collective.log == []


def test_a_wrong_key(collective: Collective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDC_API_KEY", "another-key")
    assert_fails(UserError, "ko", tmp_path, "MDC_API_KEY is not accepted", "https://mozilladatacollective.com/profile")
    assert len(collective.asked("session")) == 1


def test_terms_that_are_not_accepted(collective: Collective, tmp_path: Path) -> None:
    collective.faults["session"] = [403]
    page = "https://mozilladatacollective.com/datasets/cko27"
    assert_fails(UserError, "ko", tmp_path, "terms", page, "27.0 - Korean", "told 403")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("status", "words"), [(404, "does not know"), (410, "has taken"), (402, "answers 402")])
@pytest.mark.parametrize("kind", ["session", "details"])
def test_a_dataset_that_is_not_given(
    collective: Collective, tmp_path: Path, kind: str, status: int, words: str
) -> None:
    collective.faults[kind] = [status]
    assert_fails(WhisperError, "ko", tmp_path, words, f"told {status}", "--common-voice")


def test_a_full_disk_is_told_before_anything_comes(collective: Collective, tmp_path: Path) -> None:
    collective.datasets[0]["sizeBytes"] = 10**16
    assert_fails(UserError, "ko", tmp_path, str(tmp_path), "20000000.00 GB", "--bundle-dir")
    assert collective.asked("session") == []


def test_a_disk_that_becomes_full(collective: Collective, tmp_path: Path, archive: bytes) -> None:
    """What has come stays, and is gone on with when there is room."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        assert_fails(UserError, "ko", tmp_path, "cannot be written", "too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_right(download("ko", tmp_path), tmp_path, archive)
    assert collective.asked("storage") == ["", "bytes=1000000-"]


def test_a_missing_file_of_ours_is_no_missing_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: No such file"):
        collective_client.ask((tmp_path / "none" / "file").write_bytes, b"")


def test_an_answer_that_is_no_answer(collective: Collective, tmp_path: Path) -> None:
    """As of a hotel's network, which answers everything with its own page."""
    collective.faults["list"] = ["html"]
    assert_fails(WhisperError, "ko", tmp_path, "cannot be used", "MDC_API_URL", "prox")


@pytest.mark.parametrize("url", ["not an address", "ftp://127.0.0.1/api"])
def test_an_address_that_is_none(
    collective: Collective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("MDC_API_URL", url)
    assert_fails(WhisperError, "ko", tmp_path, "MDC_API_URL")
    assert collective.log == []


# Trouble that passes


def test_a_download_and_then_none(collective: Collective, tmp_path: Path, archive: bytes, told: io.StringIO) -> None:
    """The second run asks for the newest release alone, and does not even read the archive."""
    assert_right(download("ko", tmp_path), tmp_path, archive)
    assert_right(download("ko", tmp_path), tmp_path, archive)
    assert len(collective.asked("list")) == 2
    assert len(collective.asked("session")) == 1
    assert told.getvalue().count("checking the SHA-256") == 1


def test_an_archive_that_was_changed_is_noticed(collective: Collective, tmp_path: Path, archive: bytes) -> None:
    path = download("ko", tmp_path)
    path.write_bytes(bytes(len(archive)))
    assert_right(download("ko", tmp_path), tmp_path, archive)
    assert collective.asked("storage") == ["", ""]


@pytest.mark.parametrize("fault", [429, 500, 503, (429, {"Retry-After": "0"})])
@pytest.mark.parametrize("kind", ["list", "details", "session"])
def test_a_server_that_is_busy_is_asked_again(
    collective: Collective, tmp_path: Path, archive: bytes, kind: str, fault: Any
) -> None:
    collective.faults[kind] = [fault, fault]
    assert_right(download("ko", tmp_path), tmp_path, archive)
    assert len(collective.asked(kind)) == 3


def test_the_server_says_how_long_to_wait(
    collective: Collective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(collective_client, "sleep", pauses.append)
    collective.faults["list"] = [(429, {"Retry-After": "77"})]
    download("ko", tmp_path)
    assert pauses == [77]


@pytest.mark.parametrize("wait", ["7200", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_used_up_quota_is_told_at_once(collective: Collective, tmp_path: Path, wait: str) -> None:
    collective.faults["session"] = [(429, {"Retry-After": wait})]
    hours = "2.0 hours" if wait == "7200" else "hours"
    assert_fails(WhisperError, "ko", tmp_path, "429", hours)
    assert len(collective.asked("session")) == 1


def test_the_pauses_grow_and_end(collective: Collective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(collective_client, "sleep", pauses.append)
    monkeypatch.setattr(collective_client, "FIRST_PAUSE_S", 2.0)
    collective.faults["list"] = [500] * 20
    assert_fails(WhisperError, "ko", tmp_path, "500", "6 times", "--common-voice")
    assert pauses == [2, 4, 8, 16, 32]


def test_nobody_listens(collective: Collective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDC_API_URL", "http://127.0.0.1:9/api")
    assert_fails(WhisperError, "ko", tmp_path, "ConnectionError", "6 times")
    assert collective.log == []


def test_a_storage_that_does_not_listen(collective: Collective, tmp_path: Path) -> None:
    """The error of the connection quotes the signed address; ours does not."""
    collective.storage = "http://127.0.0.1:9"
    assert_fails(WhisperError, "ko", tmp_path, "ConnectionError", "6 times")


def test_an_address_that_ran_out_is_signed_anew(collective: Collective, tmp_path: Path, archive: bytes) -> None:
    """403 of the storage has nothing to do with terms."""
    collective.faults["storage"] = [403, 500]
    assert_right(download("ko", tmp_path), tmp_path, archive)
    assert len(collective.asked("session")) == 3


@pytest.mark.parametrize("fault", ["cut", "end early, unannounced"])
def test_a_connection_that_breaks_is_gone_on_with(
    collective: Collective, tmp_path: Path, archive: bytes, fault: str
) -> None:
    """Each time from where it broke; more often than attempts are made, because each comes further."""
    collective.faults["storage"] = [fault] * 8
    assert_right(download("ko", tmp_path), tmp_path, archive)
    ranges = collective.asked("storage")
    starts = [int(wanted.strip("bytes=-")) for wanted in ranges[1:]]
    assert len(ranges) == 9
    assert 0 < starts[0] <= BEFORE_THE_CUT
    assert starts == sorted(set(starts))


def test_wrong_bytes_of_the_right_size_are_fetched_anew(
    collective: Collective, tmp_path: Path, archive: bytes, told: io.StringIO
) -> None:
    collective.faults["storage"] = ["wrong bytes"]
    assert_right(download("ko", tmp_path), tmp_path, archive)
    assert collective.asked("storage") == ["", ""]
    assert "SHA-256 is not the one" in told.getvalue()


def test_bytes_that_stay_wrong_end_it(collective: Collective, tmp_path: Path) -> None:
    collective.faults["storage"] = ["wrong bytes"] * 20
    assert_fails(WhisperError, "ko", tmp_path, "not the one that the catalogue describes", "6 times", "--common-voice")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_ignores_ranges(collective: Collective, tmp_path: Path, archive: bytes) -> None:
    """What it sends lands behind the part: the file is too long, and is fetched anew."""
    collective.faults["storage"] = ["cut", "ignore range"]
    assert_right(download("ko", tmp_path), tmp_path, archive)
    first, second, third = collective.asked("storage")
    assert (first, third) == ("", "")
    assert second not in ("", "bytes=0-")


def test_a_server_that_refuses_ranges(collective: Collective, tmp_path: Path, archive: bytes) -> None:
    """After 416 the part is given up, or it would be refused for ever."""
    collective.faults["storage"] = ["cut", 416]
    assert_right(download("ko", tmp_path), tmp_path, archive)
    assert collective.asked("storage")[2:] == [""]


def test_a_server_that_cuts_and_ignores_ranges_ends_it(collective: Collective, tmp_path: Path) -> None:
    """Progress that is lost again is none: the attempts come to an end."""
    collective.faults["storage"] = ["cut", "ignore range"] * 30
    assert_fails(WhisperError, "ko", tmp_path, "6 times")


def test_a_catalogue_without_a_checksum(
    collective: Collective, tmp_path: Path, archive: bytes, told: io.StringIO
) -> None:
    collective.checksum = None
    collective.datasets = [collective.entry("Common Voice Scripted Speech 27.0 - Korean", "cko27", filename=NAME)]
    (tmp_path / NAME).write_bytes(bytes(3_000_000))
    assert download("ko", tmp_path).read_bytes() == archive
    assert "only its size was checked" in told.getvalue()


# What an earlier run left


def leave(folder: Path, suffix: str, content: bytes, archive: bytes) -> None:
    """A file of an earlier run, with the note by which the package knows whose part it is."""
    (folder / f"{NAME}{suffix}").write_bytes(content)
    (folder / f"{NAME}.checksum").write_text(hashlib.sha256(archive).hexdigest())


def test_a_part_is_gone_on_with(collective: Collective, tmp_path: Path, archive: bytes) -> None:
    leave(tmp_path, ".part", archive[:5000], archive)
    assert_right(download("ko", tmp_path), tmp_path, archive)
    assert collective.asked("storage") == ["bytes=5000-"]


def test_a_complete_part_needs_no_download(collective: Collective, tmp_path: Path, archive: bytes) -> None:
    """The package would ask for what stands behind the end, and get 416 for ever."""
    leave(tmp_path, ".part", archive, archive)
    path = download("ko", tmp_path)
    assert path.read_bytes() == archive
    assert collective.asked("storage") == []


@pytest.mark.parametrize("content", [b"x" * 3_000_000, bytes(1_000_000)], ids=["too long", "wrong beginning"])
def test_a_part_that_is_wrong_is_removed(
    collective: Collective, tmp_path: Path, archive: bytes, content: bytes
) -> None:
    leave(tmp_path, ".part", content, archive)
    assert_right(download("ko", tmp_path), tmp_path, archive)
    assert collective.asked("storage")[-1] == ""


@pytest.mark.usefixtures("collective")
@pytest.mark.parametrize("content", [b"x", b"", b"x" * 3_000_000], ids=["one byte", "empty", "too long"])
def test_a_wrong_archive_does_not_pass(tmp_path: Path, archive: bytes, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert_right(download("ko", tmp_path), tmp_path, archive)


def test_a_right_archive_is_taken_as_it_is(collective: Collective, tmp_path: Path, archive: bytes) -> None:
    (tmp_path / NAME).write_bytes(archive)
    assert_right(download("ko", tmp_path), tmp_path, archive)
    assert collective.asked("session") == []


def test_the_storage_has_less_than_announced(collective: Collective, tmp_path: Path, archive: bytes) -> None:
    """It ends, and leaves no part that would be refused again in the next run."""
    collective.datasets[0]["sizeBytes"] = len(archive) + 10
    assert_fails(WhisperError, "ko", tmp_path, "6 times")
    collective.datasets[0]["sizeBytes"] = len(archive)
    assert download("ko", tmp_path).read_bytes() == archive


def test_an_interrupted_download_is_gone_on_with(
    collective: Collective, tmp_path: Path, archive: bytes, told: io.StringIO
) -> None:
    """Ctrl-C stays Ctrl-C, though the package turns it into a failed download."""
    collective.faults["storage"] = ["interrupt"]
    with pytest.raises(KeyboardInterrupt):
        download("ko", tmp_path)
    came = (tmp_path / f"{NAME}.part").stat().st_size
    assert came > 0
    assert "goes on from there" in told.getvalue()
    assert_right(download("ko", tmp_path), tmp_path, archive)
    assert collective.asked("storage") == ["", f"bytes={came}-"]


# As a source


def test_it_is_read_as_if_it_were_named(collective: Collective, tmp_path: Path) -> None:
    for _ in range(2):
        assert_is_the_release(list(read(CommonVoice(), "ko", tmp_path)))
    assert collective.asked("storage") == [""]


def test_the_script_downloads_and_prepares(mini_release: Path, mini_model: Path, tmp_path: Path) -> None:
    """As a user runs it, with nothing named: the default source."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(mini_release, mini_release.name)
    server = Collective(packed.getvalue())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.faults["storage"] = ["cut"]
    shutil.copytree(mini_model, tmp_path / "bundle" / "model")
    environment = {"MDC_API_URL": f"{server.url}/api", "MDC_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    arguments = ("--bundle-dir", tmp_path / "bundle", "--num-proc", 1)
    done = script("download_data.py", *arguments, env=environment, check=True)
    server.shutdown()
    server.server_close()
    assert "Common Voice Scripted Speech 27.0 - Korean" in done.stderr
    assert KEY not in done.stdout + done.stderr
    assert (tmp_path / "bundle" / "data" / "dataset_dict.json").is_file()
