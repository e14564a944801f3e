"""Storing: the dataset as `datasets` loads it, written once and always the same, and the table of what was dropped."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from asr.shared.clips import clip_columns

if TYPE_CHECKING:
    import pyarrow

# Small enough for any file system and for copying again what was damaged.
SHARD_BYTES = 400_000_000


class SplitWriter:
    """Writes the rows of one split into a folder that `datasets.load_from_disk` opens.

    `Dataset.save_to_disk` would copy everything once more, and leaves other bytes each time.

    Args:
        folder: of the split.
        store: audio or features.
    """

    def __init__(self, folder: Path, store: str) -> None:
        self.folder, self.store = folder, store
        self.columns = clip_columns(store)
        self.digest = hashlib.sha256()
        self.shards: list[Path] = []
        self.file: IO[bytes] | None = None
        folder.mkdir(parents=True)

    def write(self, part: pyarrow.Table) -> None:
        """Add rows of a part, whose columns are those of `parts`."""
        if not part.num_rows:
            return
        if self.file is None or self.file.tell() > SHARD_BYTES:
            self._next_shard()
        self.writer.write_table(self._rows(part))
        for clip, text in zip(part["clip"], part["text"].to_pylist(), strict=True):
            self.digest.update(clip.as_buffer())
            self.digest.update(text.encode())

    def close(self) -> None:
        """Finish the files and describe them, as `datasets` expects."""
        from datasets import DatasetInfo

        # `datasets` cannot load a split that has no file.
        if self.file is None:
            self._next_shard()
        self._close_shard()
        DatasetInfo(features=self.columns).write_to_directory(str(self.folder))
        state: dict[str, Any] = {
            "_data_files": [{"filename": shard.name} for shard in self.shards],
            "_fingerprint": self.digest.hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (self.folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")

    def _rows(self, part: pyarrow.Table) -> pyarrow.Table:
        import pyarrow as pa

        part = part.combine_chunks()
        clip = part["clip"].cast(pa.binary()).combine_chunks()
        if self.store == "audio":
            names = pa.array([f"{name or 'clip'}.flac" for name in part["name"].to_pylist()], pa.string())
            stored: dict[str, Any] = {"audio": pa.StructArray.from_arrays([clip, names], ["bytes", "path"])}
        else:
            stored = {"log_mel": clip}
        rest = {name: part[name] for name in ("text", "speaker", "duration_s", "source", "source_id", "labels")}
        schema = self.columns.arrow_schema
        return pa.table({**stored, **rest}).select(schema.names).cast(schema)

    def _next_shard(self) -> None:
        import pyarrow as pa

        self._close_shard()
        # Without the number of all files: more data leave the first ones as they are, and need no new copy of them.
        self.shards.append(self.folder / f"data-{len(self.shards):05d}.arrow")
        self.file = open(self.shards[-1], "wb")  # noqa: SIM115 (stays open from one part to the next)
        self.writer = pa.ipc.new_stream(self.file, self.columns.arrow_schema)

    def _close_shard(self) -> None:
        if self.file is not None:
            self.writer.close()
            self.file.close()


def write_dict(folder: Path, splits: tuple[str, ...]) -> None:
    """Make of the folders of splits a `DatasetDict`."""
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}), encoding="utf-8")


class DroppedTable:
    """dropped.csv while it grows; Excel opens it as UTF-8 because of the byte order mark."""

    HEADINGS = ("source", "source_id", "split", "reason", "detail", "text")

    def __init__(self, file: Path) -> None:
        self.path = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(  # noqa: SIM115 (stays open while rows come)
            file, "w", encoding="utf-8", errors="backslashreplace", newline=""
        )
        self.file.write("\ufeff")
        self.writer = csv.writer(self.file, lineterminator="\n")
        self.writer.writerow(self.HEADINGS)

    def add(self, *cells: str) -> None:
        """Add a row: source, source_id, split, reason, detail, text."""
        # NUL is no part of a text file, and a spreadsheet would run what begins as a formula.
        self.writer.writerow([_harmless(cell) for cell in cells])

    def close(self) -> None:
        """Finish the file."""
        self.file.close()


def _harmless(cell: str) -> str:
    # A bare carriage return ends a row for some readers; more than 32,767 characters are too many for Excel.
    clean = cell.replace("\0", "\\0").replace("\r\n", "\n").replace("\r", "\n")[:32_000]
    return f"'{clean}" if clean.startswith(("=", "+", "@")) else clean
