"""A Hugging Face Hub on loopback, as much of it as a model's download asks for, and with its faults."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LISTING = "the listing"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer.

    Attributes:
        status: an error instead of the answer, or 0.
        headers: of the error.
        sent: bytes after which the connection is cut.
        altered: whether a byte of the content is wrong.
        whole: whether a range is asked for in vain.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None
    altered: bool = False
    whole: bool = False


NO_FAULT = Fault()


@dataclass(frozen=True)
class Asked:
    """One request: its path, the range it asks for, and whether it carries a token."""

    path: str
    range: str
    token: bool


@dataclass
class Hub:
    """The server's content and what it was asked.

    Attributes:
        models: name of a model to its files; every other name is answered as the Hub answers it.
        faults: model and file (or LISTING) to what goes wrong with one answer after the other.
        bare: models whose listing tells neither sizes nor digests, as those of some mirrors.
        claimed: sizes that the listing tells instead of the true ones, by model and file.
        asked: all requests.
    """

    models: dict[str, dict[str, bytes]]
    faults: dict[tuple[str, str], Iterator[Fault]] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)
    claimed: dict[tuple[str, str], int] = field(default_factory=dict)
    url: str = ""
    asked: list[Asked] = field(default_factory=list)

    def fetched(self, model: str) -> list[str]:
        """Return the files that were asked for, in order, each as often as it was."""
        beginning = f"/{model}/resolve/{COMMIT}/"
        return [asked.path.removeprefix(beginning) for asked in self.asked if asked.path.startswith(beginning)]

    def ranges(self, model: str, file: str) -> list[str]:
        """Return the ranges in which a file was asked for, "" for the whole."""
        return [asked.range for asked in self.asked if asked.path == f"/{model}/resolve/{COMMIT}/{file}"]

    def answer(self, path: str, range_header: str) -> tuple[int, dict[str, str], bytes, int | None]:
        """Return status, headers, body, and after how many bytes of it the connection is cut, if at all."""
        place, _, name_and_file = path.strip("/").partition("/")
        if place == "cdn":
            model, _, file = name_and_file.rpartition("/")
            return self._content(model, file, range_header)
        for model, files in self.models.items():
            if path.startswith(f"/api/models/{model}/revision/"):
                return self._listing(model, path.rpartition("/")[2])
            file = path.removeprefix(f"/{model}/resolve/{COMMIT}/")
            if file in files and is_large(file):
                # Another name of the same machine, and so another site.
                store = self.url.replace("127.0.0.1", "localhost")
                return 302, {"Location": f"{store}/cdn/{model}/{file}?Signature=0"}, b"", None
            if file in files:
                return self._content(model, file, range_header)
        return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}", None

    def _next_fault(self, model: str, file: str) -> Fault:
        return next(self.faults.get((model, file), iter(())), NO_FAULT)

    def _listing(self, model: str, revision: str) -> tuple[int, dict[str, str], bytes, int | None]:
        fault = self._next_fault(model, LISTING)
        if fault.status:
            return fault.status, fault.headers, b"{}", None
        if revision not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}", None
        files = [{"rfilename": file} if model in self.bare else self._entry(model, file) for file in self.models[model]]
        return 200, {}, json.dumps({"id": model, "sha": COMMIT, "siblings": files}).encode(), None

    def _entry(self, model: str, file: str) -> dict[str, Any]:
        content = self.models[model][file]
        size = self.claimed.get((model, file), len(content))
        entry: dict[str, Any] = {"rfilename": file, "size": size, "blobId": "f" * 40}
        if is_large(file):
            entry["lfs"] = {"size": size, "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
        else:
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return entry

    def _content(self, model: str, file: str, range_header: str) -> tuple[int, dict[str, str], bytes, int | None]:
        fault = self._next_fault(model, file)
        if fault.status:
            return fault.status, fault.headers, b"{}", None
        content = self.models[model][file]
        if fault.altered:
            content = content[:100] + bytes([content[100] ^ 1]) + content[101:]
        if not range_header or fault.whole:
            return 200, {}, content, fault.sent
        start = int(range_header.removeprefix("bytes=").removesuffix("-"))
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return 206, headers, content[start:], fault.sent


def is_large(file: str) -> bool:
    """Whether the Hub keeps a file beside git, in a store with another name."""
    return file.endswith((".safetensors", ".bin"))


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Answer requests inside the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            wanted = self.headers.get("Range", "")
            hub.asked.append(Asked(path, wanted, "Authorization" in self.headers))
            status, headers, body, sent = hub.answer(path, wanted)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[:sent])

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()


def hub_environment(url: str, home: Path) -> dict[str, str]:
    """Variables that point a download at a stand-in, and nowhere else."""
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_nothing",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "OMP_NUM_THREADS": "1",
    }


DOWNLOAD = """
import json, sys
from pathlib import Path
from asr.online import model_hub, retries, whisper
import utils

retries.WAITS_S = (0.01, 0.01, 0.01)
utils.set_up_logging()
for name, revision in json.loads(sys.argv[1]):
    print("==", name, file=sys.stderr, flush=True)
    try:
        model = model_hub.list_model(name, revision)
        files = model_hub.download(model, whisper.choose_files(model.files), Path(sys.argv[2]))
        print(json.dumps([model.commit, {name: str(file) for name, file in files.items()}, ""]))
    except utils.UserError as error:
        print(json.dumps(["", {}, str(error)]))
"""


@dataclass(frozen=True)
class Outcome:
    """What came of one model: commit and files, or the error; and what was logged."""

    commit: str
    files: dict[str, str]
    error: str
    log: str


def download_many(wishes: list[tuple[str, str]], url: str, home: Path) -> list[Outcome]:
    """Download models, each by name and revision, in a process of its own: its libraries read variables at import."""
    done = subprocess.run(
        [sys.executable, "-c", DOWNLOAD, json.dumps(wishes), str(home.parent)],
        capture_output=True, text=True, encoding="utf-8", cwd=ROOT, timeout=300,
        env={**os.environ, **hub_environment(url, home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logs = [part.partition("\n")[2] for part in done.stderr.split("== ")[1:]]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [Outcome(*line, log) for line, log in zip(lines, logs, strict=True)]
