"""Parts: verdicts on disk while a preparation is under way, so that it can be interrupted and go on."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.online.judging import Verdict, fingerprint, short_hash
from asr.online.sources.row import Row
from utils import log

if TYPE_CHECKING:
    import pyarrow

PART_ROWS = 512
LONGEST_RAW_TEXT = 2000
# Changes when what is written, or how rows are judged, changes: older parts are of no use then.
FORMAT = 2
SPLIT_CODES = {"": -1, "train": 0, "validation": 1, "test": 2}


class Parts:
    """A folder of parts, each with the verdicts on so many rows, in the order of the rows.

    Args:
        folder: where they lie; what is in it from other settings is removed.
        settings: all that verdicts depend on beside the rows.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        told = json.dumps([FORMAT, PART_ROWS, settings], sort_keys=True, default=str)
        self.folder = folder / hashlib.sha256(told.encode()).hexdigest()[:16]
        for other in folder.glob("*"):
            if other != self.folder and re.fullmatch("[0-9a-f]{16}", other.name):
                shutil.rmtree(other, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def files(self) -> list[Path]:
        """Return the parts that are whole, in order."""
        found = (self._file(number) for number in itertools.count())
        return list(itertools.takewhile(Path.exists, found))

    def fill(
        self,
        rows: Iterable[Row],
        judge_all: Callable[[Iterable[Row]], Iterator[Verdict]],
        labels_of: Callable[[list[Verdict]], list[tuple[Verdict, list[int]]]],
        count: Callable[[int], object],
    ) -> None:
        """Bring the parts up to all of `rows`; what is there from an earlier run is kept, as long as it is the same.

        Args:
            rows: of all sources.
            judge_all: gives the verdicts of rows, in order.
            labels_of: gives the token ids of verdicts, or drops them.
            count: told how many rows have been dealt with.
        """
        source = iter(rows)
        known, pending = self._known(source, count)
        verdicts = judge_all(itertools.chain(pending, source))
        for number in itertools.count(known):
            batch = []
            for verdict in itertools.islice(verdicts, PART_ROWS):
                batch.append(verdict)
                count(1)
            if not batch:
                break
            self._write(number, labels_of(batch))

    def _known(self, source: Iterator[Row], count: Callable[[int], object]) -> tuple[int, list[Row]]:
        """Return how many parts hold the first rows of `source` as they are now, and the rows read beyond those."""
        files = self.files()
        for number, file in enumerate(files):
            keys = read_columns(file, ["key"])["key"].to_pylist()
            batch = list(itertools.islice(source, len(keys)))
            if [fingerprint(row) for row in batch] != keys or len(keys) < PART_ROWS:
                # The last part of a finished run may be short; more rows may follow now.
                for stale in files[number:]:
                    stale.unlink()
                return number, batch
            if number == 0:
                log.info("going on with what an earlier run prepared in %s", self.folder.parent)
            count(len(batch))
        return len(files), []

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.arrow"

    def _write(self, number: int, judged: list[tuple[Verdict, list[int]]]) -> None:
        import pyarrow as pa

        table = pa.Table.from_pylist([_record(verdict, labels) for verdict, labels in judged], schema=_schema())
        beside = self.folder / ".part.tmp"
        with open(beside, "wb") as file:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._file(number))

    def remove(self) -> None:
        """Delete the parts, and their folder where nothing else is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


def read_columns(file: Path, columns: list[str] | None = None) -> pyarrow.Table:
    """Return columns of a part; others are not read from the disk."""
    import pyarrow as pa

    with pa.OSFile(str(file)) as source:
        names = pa.ipc.open_file(source).schema.names
        chosen = None if columns is None else [names.index(column) for column in columns]
        return pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=chosen)).read_all()


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    texts = ("source", "source_id", "name", "speaker", "text", "raw_text", "reason", "detail")
    text = {name: pa.string() for name in texts}
    ids = {name: pa.int64() for name in ("source_key", "speaker_key", "group_key", "text_key", "audio_key")}
    rest = {"key": pa.binary(16), "given": pa.int8(), "clip": pa.large_binary(), "duration_s": pa.float64()}
    return pa.schema({**text, **ids, **rest, "syllables": pa.int32(), "labels": pa.list_(pa.int32())})


def _record(verdict: Verdict, labels: list[int]) -> dict[str, Any]:
    row = verdict.row
    return {
        "key": verdict.key,
        "source": row.source,
        "source_id": _utf8(row.source_id),
        "name": _utf8(row.audio.stem) if isinstance(row.audio, Path) else "",
        "given": SPLIT_CODES[row.split],
        "speaker": _utf8(row.speaker),
        "text": verdict.text,
        "raw_text": _utf8(row.text[:LONGEST_RAW_TEXT]) if verdict.reason else "",
        "reason": verdict.reason,
        "detail": _utf8(verdict.detail),
        "clip": verdict.clip,
        "duration_s": verdict.duration_s,
        "syllables": verdict.syllables,
        "labels": labels,
        # Speakers of two sources are two people, whatever they are called.
        "source_key": _key(row.source),
        "speaker_key": _key_in(row.source, row.speaker) if row.speaker else 0,
        "group_key": _key_in(row.source, "group", row.group) if row.group else 0,
        "text_key": _key(verdict.text),
        "audio_key": verdict.audio_id,
    }


def _utf8(text: str) -> str:
    """Return what UTF-8 can hold: a file's name may have bytes of another encoding."""
    return text.encode("utf-8", "backslashreplace").decode()


def _key_in(source: str, *parts: str) -> int:
    """Return a key of two sources' own, but in the order of its parts: what a split gives must not hang on a name."""
    return _key(*parts) & ~0xFFFF | _key(source) & 0xFFFF


def _key(*parts: str) -> int:
    return short_hash("\x1f".join(parts).encode("utf-8", "surrogatepass"))
