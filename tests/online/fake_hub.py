"""A stand-in for the Hugging Face Hub on loopback: as much of its protocol as downloading a dataset takes."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import threading
import urllib.parse
import wave
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Kept outside of git on the Hub, and listed with their SHA-256.
LARGE = (".parquet", ".wav", ".mp3", ".flac")
EXPIRED = "hf_expired"


@dataclass
class Dataset:
    """A dataset on the stand-in.

    Attributes:
        revisions: branch, tag or commit to the files it has; a branch's commit is made of its name.
        token: who reads it must show this one; "" for everyone.
        gated: whether a reader without the token is told that there are terms to accept, or that there is nothing.
    """

    revisions: dict[str, dict[str, bytes]]
    token: str = ""
    gated: bool = False

    def commit(self, revision: str) -> str:
        """Return the commit of a revision, or "" for one that there is not."""
        if revision in self.revisions:
            return revision if len(revision) == 40 else commit_of(revision)
        return next((revision for name in self.revisions if commit_of(name) == revision), "")

    def files(self, commit: str) -> dict[str, bytes]:
        """Return the files of a commit."""
        return next(files for name, files in self.revisions.items() if self.commit(name) == commit)


@dataclass
class FakeHub:
    """The stand-in.

    Attributes:
        datasets: by id.
        troubles: what goes wrong with GET requests whose path holds a text, in order: a status to answer with, "cut"
            to break off in the middle of a body, "damage" to send other bytes of the same size.
        asked: method and path of every request, and the token shown.
    """

    datasets: dict[str, Dataset] = field(default_factory=dict)
    troubles: dict[str, list[int | str]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def paths(self, part: str) -> list[str]:
        """Return the paths of all requests that hold `part`, as method and path."""
        return [f"{method} {path}" for method, path, _ in self.asked if part in path]

    def fetched(self, name: str) -> Counter[str]:
        """Return how often each file of a dataset was fetched."""
        prefix = f"/datasets/{name}/resolve/"
        found = (path.removeprefix(prefix) for method, path, _ in self.asked if method == "GET")
        return Counter(path.partition("/")[2] for path in found if not path.startswith("/"))

    def trouble(self, method: str, path: str) -> int | str:
        """Take the next trouble that a request is to have, or 0."""
        for part, troubles in self.troubles.items():
            if part in path and troubles and method == "GET":
                return troubles.pop(0)
        return 0

    def answer(self, path: str, token: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a path."""
        if token == EXPIRED:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}"
        for name, dataset in self.datasets.items():
            api, data = f"/api/datasets/{name}/", f"/datasets/{name}/resolve/"
            if not path.startswith((api, data)):
                continue
            if dataset.token and token != dataset.token:
                status = 401 if not token else 403
                return _refused(status, "GatedRepo") if dataset.gated else _refused(404, "RepoNotFound")
            kind, _, rest = path.removeprefix(api).partition("/") if path.startswith(api) else ("", "", "")
            if kind == "revision":
                return self._revision(name, dataset, rest)
            if kind == "tree":
                return _tree(dataset, rest)
            return _file(dataset, path.removeprefix(data))
        return _refused(404, "RepoNotFound")

    def _revision(self, name: str, dataset: Dataset, revision: str) -> tuple[int, dict[str, str], bytes]:
        commit = dataset.commit(revision)
        if not commit:
            return _refused(404, "RevisionNotFound")
        siblings = [{"rfilename": file} for file in dataset.files(commit)]
        return 200, {}, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode()


def commit_of(revision: str) -> str:
    """Return the commit that a branch or tag of the stand-in names."""
    return hashlib.sha1(revision.encode()).hexdigest()


def _refused(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"


def _tree(dataset: Dataset, commit: str) -> tuple[int, dict[str, str], bytes]:
    if not dataset.commit(commit):
        return _refused(404, "RevisionNotFound")
    entries: list[dict[str, Any]] = []
    for name, content in dataset.files(dataset.commit(commit)).items():
        entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if name.endswith(LARGE):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        entries.append(entry)
    return 200, {}, json.dumps(entries).encode()


def _file(dataset: Dataset, rest: str) -> tuple[int, dict[str, str], bytes]:
    revision, _, name = rest.partition("/")
    commit = dataset.commit(revision)
    content = dataset.files(commit).get(name) if commit else None
    if content is None:
        return _refused(404, "EntryNotFound")
    kind = hashlib.sha256 if name.endswith(LARGE) else hashlib.sha1
    return 200, {"X-Repo-Commit": commit, "ETag": f'"{kind(content).hexdigest()}"', "Accept-Ranges": "bytes"}, content


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.asked.append((self.command, path, token))
        trouble = self.hub.trouble(self.command, path)
        if isinstance(trouble, int) and trouble:
            self._send(trouble, {}, b"")
            return
        status, headers, body = self.hub.answer(path, token)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start and status == 200:
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        if trouble == "damage":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self._send(status, headers, body[start:], cut=trouble == "cut")

    do_HEAD = do_GET

    def _send(self, status: int, headers: dict[str, str], body: bytes, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve until the block ends; `hub.url` says where."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()


# What datasets are made of


def wav(number: int) -> bytes:
    """Return a tenth of a second of sound, another one for each number."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(bytes([number % 256, 1]) * 1600)
    return file.getvalue()


def parquet(columns: dict[str, list[Any]], audio: tuple[str, ...] = ("audio",), told: bool = True) -> bytes:
    """Return a parquet file as `datasets` writes it, without the library that would want torchcodec for it.

    Args:
        columns: name to cells; audio as the bytes of a file.
        audio: columns that are audio: structs of bytes and path.
        told: whether the file says in the metadata of `datasets` which columns are audio.
    """
    import pyarrow as pa
    from pyarrow.parquet import write_table

    arrays = {}
    for name, cells in columns.items():
        if name in audio:
            kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
            cells = [cell and {"bytes": cell, "path": f"{number}.wav"} for number, cell in enumerate(cells)]
            arrays[name] = pa.array(cells, kind)
        else:
            arrays[name] = pa.array(cells)
    table = pa.table(arrays)
    if told:
        features = {name: {"_type": "Audio" if name in audio else "Value"} for name in columns}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file = io.BytesIO()
    write_table(table, file)
    return file.getvalue()


def card(**configs: dict[str, str]) -> bytes:
    """Return a README.md whose head says which files make which split of which configuration."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += [line for split, path in splits.items() for line in (f"  - split: {split}", f"    path: {path}")]
    return "\n".join([*lines, "---", "# A dataset", ""]).encode()
