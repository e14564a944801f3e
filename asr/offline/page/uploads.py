"""Uploads: which files visitors have brought, and that none stays after its use."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asr.offline.page.wording import Refused

# An upload that nobody asks to have transcribed goes after this time.
ABANDONED_S = 3600.0
# While others are under way, it may wait for its turn: then it goes after so many times as long.
BUSY = 6
# Of an answer to an upload, which is a list of paths.
LONGEST_ANSWER = 1_000_000


class Uploads:
    """The folder of uploads.

    The same content has the same path there, whoever sends it: so a file goes when it was used as often as it came.

    Args:
        folder: that uploads are written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: Counter[Path] = Counter()
        self._in_use: Counter[Path] = Counter()
        self._stuck: set[Path] = set()
        self._lock = threading.Lock()

    def came(self, path: Path) -> None:
        """Note that a file was uploaded, or uploaded again."""
        with self._lock:
            self._waiting[path] += 1

    @contextmanager
    def using(self, path: Path) -> Iterator[Path]:
        """Give an upload inside the block; after it the file is deleted, unless somebody else waits for its turn.

        Raises:
            Refused: it is no upload, or was used already.
        """
        with self._lock:
            if not self._waiting[path]:
                del self._waiting[path]
                raise Refused("gone" if path.is_relative_to(self.folder) else "not_uploaded")
            self._waiting[path] -= 1
            self._in_use[path] += 1
        try:
            yield path
        finally:
            with self._lock:
                self._in_use[path] -= 1
                self._delete_unless_wanted(path)

    def _delete_unless_wanted(self, path: Path) -> None:
        if self._waiting[path] or self._in_use[path]:
            return
        del self._waiting[path], self._in_use[path]
        self._unlink(path)

    def _unlink(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            # Windows deletes nothing that is open, as what a browser is just fetching.
            self._stuck.add(path)
            return
        self._stuck.discard(path)
        # Where somebody uploads the same at this moment, it is not empty.
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def clean(self) -> None:
        """Delete what nobody asked to have transcribed, what could not be deleted before, and what broke off."""
        with self._lock:
            limit = ABANDONED_S * (BUSY if any(self._in_use.values()) else 1)
            for path in [*self._waiting]:
                if not self._in_use[path] and _age(path) > limit:
                    self._waiting[path] = 0
                    self._delete_unless_wanted(path)
            for path in [*self._stuck]:
                if not self._waiting[path] and not self._in_use[path]:
                    self._unlink(path)
            for path in self.folder.iterdir():
                if path.is_file() and _age(path) > ABANDONED_S:
                    with contextlib.suppress(OSError):
                        path.unlink()


def _age(path: Path) -> float:
    """Return how many seconds ago a file was written; 0 where it is not there."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


class UploadsSeen:
    """Middleware (ASGI) that notes the paths which the server answers to uploads.

    Args:
        app: the server.
        uploads: where they are noted.
    """

    def __init__(self, app: Any, uploads: Uploads) -> None:
        self.app, self.uploads = app, uploads

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass everything on; of uploads read the answer, too."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith("/upload"):
            await self.app(scope, receive, send)
            return
        answer = bytearray()

        async def seen(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body" and len(answer) < LONGEST_ANSWER:
                answer.extend(message.get("body", b""))
                # Before the visitor can know of it.
                if not message.get("more_body"):
                    self._note(bytes(answer))
            await send(message)

        await self.app(scope, receive, seen)

    def _note(self, answer: bytes) -> None:
        with contextlib.suppress(ValueError):
            paths = json.loads(answer)
            for path in paths if isinstance(paths, list) else []:
                self.uploads.came(Path(path))
