"""Preparation: every row of a source gets a verdict; what is good becomes 16 kHz FLAC, text and token ids."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.online.sources import Row
from asr.shared.audio import SAMPLE_RATE, AudioError, encode_flac, load_audio
from asr.shared.processor import label_ids
from asr.shared.progress import progress_bar
from asr.shared.text import clean_text
from config import Data
from utils import UserError, folder_made_whole, write_atomically

if TYPE_CHECKING:
    from datasets import Features
    from transformers import WhisperTokenizer

SPLITS = ("train", "validation", "test")
MAX_LABEL_TOKENS = 448


@dataclass(frozen=True)
class Verdict:
    """What became of one row: a clip to store, or the reason why there is none."""

    row: Row
    text: str = ""
    flac: bytes = b""
    duration_s: float = 0.0
    reason: str = ""
    detail: str = ""


@dataclass
class Tally:
    """Counts of one preparation; rows read = kept + dropped, always."""

    read: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0.0))
    dropped: list[Verdict] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Counts and hours a split, and how many rows were dropped for which reason."""
        splits = {name: {"clips": self.kept[name], "hours": round(self.seconds[name] / 3600, 4)} for name in SPLITS}
        reasons = Counter(verdict.reason for verdict in self.dropped)
        return {"rows_read": self.read, "rows_dropped": len(self.dropped), "reasons": dict(reasons), "splits": splits}


def prepare(rows: Iterable[Row], tokenizer: WhisperTokenizer, data: Data, bundle_dir: Path) -> Tally:
    """Judge and store every row: `data/` as a DatasetDict, `reports/dropped.csv` with what was dropped and why.

    Raises:
        UserError: nothing was left to train on.
    """
    tally = Tally()
    with folder_made_whole(bundle_dir / "data") as folder:
        _store(_judge_all(rows, data), tokenizer, folder, tally)
        if not tally.kept["train"]:
            first = f"; the first of {len(tally.dropped)} dropped: {_told(tally.dropped[0])}" if tally.dropped else ""
            raise UserError(f"no training clip is left of {tally.read} rows{first}")
    write_atomically(bundle_dir / "reports" / "dropped.csv", _dropped_csv(tally.dropped))
    return tally


def judge(row: Row, min_seconds: float, max_seconds: float) -> Verdict:
    """Look at one row: its text, its audio, its length."""
    text = clean_text(row.text)
    if not text:
        return Verdict(row, reason="empty text")
    try:
        waveform = load_audio(row.audio)
    except AudioError as error:
        return Verdict(row, reason="unreadable audio", detail=str(error))
    seconds = len(waveform) / SAMPLE_RATE
    if seconds < min_seconds:
        return Verdict(row, reason="too short", detail=f"{seconds:.2f} s")
    if seconds > max_seconds:
        return Verdict(row, reason="too long", detail=f"{seconds:.2f} s")
    return Verdict(row, text, encode_flac(waveform), seconds)


def _judge_all(rows: Iterable[Row], data: Data) -> Iterator[Verdict]:
    """Judge rows on all cores, in order. The processes start afresh: forking would copy locked threads."""
    processes = data.num_proc or os.cpu_count() or 1
    tasks = ((row, data.min_seconds, data.max_seconds) for row in rows)
    if processes == 1:
        yield from map(_judge_task, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(_judge_task, tasks, chunksize=8)


def _judge_task(task: tuple[Row, float, float]) -> Verdict:
    return judge(*task)


def _store(verdicts: Iterable[Verdict], tokenizer: WhisperTokenizer, folder: Path, tally: Tally) -> None:
    """Write what is kept, a split at a time, as sources give them; keep account of all."""
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    features = clip_features()
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch:
        files = {name: str(Path(scratch) / f"{name}.arrow") for name in SPLITS}
        writers = {name: ArrowWriter(path=file, features=features) for name, file in files.items()}
        for verdict in progress_bar(verdicts, desc="preparing clips", unit="clip"):
            tally.read += 1
            judged, labels = _with_labels(verdict, tokenizer)
            if judged.reason:
                tally.dropped.append(judged)
                continue
            tally.kept[judged.row.split] += 1
            tally.seconds[judged.row.split] += judged.duration_s
            writers[judged.row.split].write(_example(judged, labels))
        for name, writer in writers.items():
            writer.finalize()
            # Left alone, `datasets` saves an empty split as no file at all, which it then cannot load.
            shards = None if tally.kept[name] else 1
            Dataset.from_file(files[name]).save_to_disk(str(folder / name), num_shards=shards)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(SPLITS)}))


def _with_labels(verdict: Verdict, tokenizer: WhisperTokenizer) -> tuple[Verdict, list[int]]:
    if verdict.reason:
        return verdict, []
    labels = label_ids(tokenizer, verdict.text)
    if len(labels) > MAX_LABEL_TOKENS:
        detail = f"{len(labels)} tokens, Whisper writes at most {MAX_LABEL_TOKENS}"
        return Verdict(verdict.row, reason="text too long", detail=detail), []
    return verdict, labels


def _example(verdict: Verdict, labels: list[int]) -> dict[str, Any]:
    return {
        "audio": {"bytes": verdict.flac, "path": f"{verdict.row.audio.stem}.flac"},
        "text": verdict.text,
        "speaker": verdict.row.speaker,
        "duration_s": verdict.duration_s,
        "source_id": verdict.row.source_id,
        "labels": labels,
    }


def clip_features() -> Features:
    """Columns of the stored dataset; plain bytes for audio, because `Audio` encodes with torchcodec alone."""
    from datasets import Features, List, Value

    return Features(
        {
            "audio": {"bytes": Value("binary"), "path": Value("string")},
            "text": Value("string"),
            "speaker": Value("string"),
            "duration_s": Value("float32"),
            "source_id": Value("string"),
            "labels": List(Value("int32")),
        }
    )


def _dropped_csv(dropped: list[Verdict]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["source_id", "split", "reason", "detail", "text"])
    writer.writerows([v.row.source_id, v.row.split, v.reason, v.detail, v.row.text] for v in dropped)
    return table.getvalue()


def _told(verdict: Verdict) -> str:
    return f"{verdict.row.source_id}: {verdict.reason} {verdict.detail}".strip()
