"""Preparation: every row of a source gets a verdict; what is good becomes 16 kHz FLAC, text and token ids.

Rows are judged on all cores into parts on the disk; then repeats and leaks are found and the clips divided; then the
parts are read once more into the dataset. Interrupted, it goes on behind the last part that is whole.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.online.judging import Judge, Verdict, unjudged
from asr.online.parts import Parts, read_columns
from asr.online.report import report_html
from asr.online.sources.row import Announce, Row
from asr.online.splitting import NONE, REASONS, SPLITS, TRAIN, Clips, Decision, decide
from asr.online.statistics import Statistics
from asr.online.storing import DroppedTable, SplitWriter, write_dict
from asr.online.workers import map_in_order
from asr.shared.processor import label_ids_of_all
from asr.shared.progress import progress_bar
from config import Cleaning, Data, split_shares
from utils import Interrupted, UserError, folder_made_whole, log, write_atomically

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from transformers import WhisperTokenizer

MAX_LABEL_TOKENS = 448
KEYS = ("source_key", "speaker_key", "group_key", "text_key", "audio_key")


def prepare(
    read: Callable[[Announce], Iterable[Row]],
    tokenizer: WhisperTokenizer,
    data: Data,
    bundle_dir: Path,
    settings: dict[str, Any] | None = None,
    mel: tuple[int, int] = (80, 3000),
    before_replacing: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Judge, divide and store every row: `data/` as a DatasetDict, and the reports dropped.csv and data.html.

    Args:
        read: gives the rows of all sources; it tells its argument how many will come, as far as it knows.
        tokenizer: of the bundled model, with language and task set.
        data: the configuration.
        bundle_dir: the bundle.
        settings: what the reports tell of the configuration.
        mel: mel bins and frames of the bundled model's window.
        before_replacing: called before anything in the bundle changes.

    Returns:
        Counts and figures, as `Statistics.figures` gives them.

    Raises:
        UserError: nothing was left to train on, or --strict and something was dropped.
        Interrupted: by Ctrl-C; the same command goes on.
    """
    cleaning, work_dir = _within_window(data.cleaning, mel[1] / 100), _work_dir(bundle_dir)
    features = mel if data.storage.store == "features" else None
    with _alone_in(work_dir):
        parts = Parts(work_dir, _what_verdicts_depend_on(cleaning, features, tokenizer))
        try:
            _judge_into(parts, read, Judging(cleaning, features, data.storage.num_proc), tokenizer)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; the same command goes on (what is done lies in {work_dir})") from None
        clips = _clips(parts.files())
        decision = decide(clips, split_shares(cleaning.split), cleaning.split_seed, cleaning.keep_repeats)
        statistics, dropped = Statistics(), DroppedTable(work_dir / "dropped.csv")
        with folder_made_whole(bundle_dir / "data") as folder:
            _store(parts.files(), clips, decision, folder, data.storage.store, statistics, dropped)
            dropped.close()
            _refuse(statistics, dropped.path, cleaning.strict)
            before_replacing()
        figures = statistics.figures(clips, decision, settings or {})
        (bundle_dir / "reports").mkdir(exist_ok=True)
        os.replace(dropped.path, bundle_dir / "reports" / "dropped.csv")
        write_atomically(bundle_dir / "reports" / "data.html", report_html(figures))
        parts.remove()
    return figures


@contextlib.contextmanager
def _alone_in(work_dir: Path) -> Iterator[None]:
    """Keep a second preparation of the same bundle out: it would take the first one's parts for its own, or away."""
    from filelock import FileLock, Timeout

    work_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work_dir.with_name(f"{work_dir.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{work_dir}: another process is preparing this bundle; wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


@dataclass(frozen=True)
class Judging:
    """How rows are judged: the limits, mel bins and frames where log-mel is stored, and on how many cores."""

    cleaning: Cleaning
    mel: tuple[int, int] | None
    num_proc: int

    def __call__(self, rows: Iterable[Row]) -> Iterator[Verdict]:
        """Yield the verdict on each row, in order."""
        return map_in_order(Judge, (self.cleaning, self.mel), rows, self.num_proc, _crashed)


def _crashed(row: Row) -> Verdict:
    return replace(unjudged(row), reason="unreadable audio", detail="decoding it ended the process")


def _judge_into(
    parts: Parts, read: Callable[[Announce], Iterable[Row]], judging: Judging, tokenizer: WhisperTokenizer
) -> None:
    announced: list[int] = []
    rows = iter(read(announced.append))
    # A source that downloads or unpacks does so now, and has progress of its own to show.
    first = list(itertools.islice(rows, 1))
    with progress_bar(desc="preparing clips", unit="clip") as bar:

        def advance(count: int) -> None:
            bar.total = sum(announced) or None
            bar.update(count)

        parts.fill(itertools.chain(first, rows), judging, functools.partial(_with_labels, tokenizer), advance)


def _with_labels(tokenizer: WhisperTokenizer, verdicts: list[Verdict]) -> list[tuple[Verdict, list[int]]]:
    """Add the token ids of each text; a text that is too long for the decoder is dropped."""
    good = [verdict.text for verdict in verdicts if not verdict.reason]
    labels = iter(label_ids_of_all(tokenizer, good))
    judged = []
    for verdict in verdicts:
        ids = [] if verdict.reason else next(labels)
        if len(ids) > MAX_LABEL_TOKENS:
            detail = f"{len(ids)} tokens, Whisper writes at most {MAX_LABEL_TOKENS}"
            verdict, ids = Verdict(verdict.row, verdict.key, reason="text too long", detail=detail), []
        judged.append((verdict, ids))
    return judged


def _clips(files: list[Path]) -> Clips:
    """Gather the numbers of all clips that were judged good."""
    import numpy as np

    columns: dict[str, list[np.ndarray]] = {}
    begin = 0
    for file in files:
        table = read_columns(file, [*KEYS, "given", "duration_s", "syllables", "reason"])
        good = np.array([not reason for reason in table["reason"].to_pylist()], bool)
        columns.setdefault("row", []).append(begin + np.flatnonzero(good))
        for name in (*KEYS, "given", "duration_s", "syllables"):
            columns.setdefault(name, []).append(table[name].to_numpy()[good])
        begin += table.num_rows
    joined = {name: np.concatenate(pieces) for name, pieces in columns.items()}
    empty = np.zeros(0, np.int64)
    row, source, speaker, group, text, audio = (joined.get(name, empty) for name in ("row", *KEYS))
    given, seconds, syllables = (joined.get(name, empty) for name in ("given", "duration_s", "syllables"))
    return Clips(row, source, speaker, group, text, audio, given.astype(np.int8), seconds.astype("f4"), syllables)


def _store(
    files: list[Path],
    clips: Clips,
    decision: Decision,
    folder: Path,
    store: str,
    statistics: Statistics,
    dropped: DroppedTable,
) -> None:
    """Read the parts once more: each clip into its split, every other row into the table of what was dropped."""
    import numpy as np

    writers = {name: SplitWriter(folder / name, store) for name in SPLITS}
    source_id = _source_ids(files)
    begin = 0
    for file in progress_bar(files, desc="storing", unit="part"):
        part = read_columns(file)
        splits, reasons, others = (np.full(part.num_rows, code, np.int64) for code in (NONE, 0, -1))
        mine = slice(*np.searchsorted(clips.row, [begin, begin + part.num_rows]))
        at = clips.row[mine] - begin
        splits[at], reasons[at] = decision.split[mine], decision.reason[mine]
        others[at] = np.where(decision.other[mine] >= 0, clips.row[decision.other[mine]], -1)
        begin += part.num_rows
        for code, name in enumerate(SPLITS):
            writers[name].write(part.filter(splits == code))
        _count(part, splits, reasons, others, source_id, statistics, dropped)
    for writer in writers.values():
        writer.close()
    write_dict(folder, SPLITS)


def _count(
    part: pyarrow.Table,
    splits: np.ndarray,
    reasons: np.ndarray,
    others: np.ndarray,
    source_id: Callable[[int], str],
    statistics: Statistics,
    dropped: DroppedTable,
) -> None:
    told = part.drop_columns(["clip", "labels"]).to_pylist()
    for row, split, reason, other in zip(told, splits, reasons, others, strict=True):
        if split != NONE:
            statistics.keep(SPLITS[split], row["source"], row["text"], row["duration_s"])
            continue
        why, detail, text = row["reason"], row["detail"], row["raw_text"]
        if reason:
            why, detail, text = REASONS[reason], f"see {source_id(other)}", row["text"]
        given = SPLITS[row["given"]] if row["given"] >= TRAIN else ""
        dropped.add(row["source"], row["source_id"], given, why, detail, text)
        statistics.drop(row["source"], row["source_id"], why, detail, text)


def _source_ids(files: list[Path]) -> Callable[[int], str]:
    """Return a function that tells where a row came from, reading no more than the parts that are asked for."""
    import numpy as np

    @functools.lru_cache(maxsize=64)
    def column(number: int) -> list[str]:
        return read_columns(files[number], ["source_id"])["source_id"].to_pylist()

    ends = np.cumsum([read_columns(file, ["given"]).num_rows for file in files])

    def source_id(row: int) -> str:
        number = int(np.searchsorted(ends, row, side="right"))
        return column(number)[row - (int(ends[number - 1]) if number else 0)]

    return source_id


def _refuse(statistics: Statistics, listed: Path, strict: bool) -> None:
    first = next((found[0] for found in statistics.examples.values()), None)
    told = f"; the first of {statistics.rows_dropped} dropped: {first['source_id']} {first['detail']}" if first else ""
    rows = statistics.rows_kept + statistics.rows_dropped
    if not any(counts[SPLITS[TRAIN]] for counts in statistics.kept.values()):
        raise UserError(f"no training clip is left of {rows} rows{told} ({listed})")
    if strict and statistics.rows_dropped:
        raise UserError(f"--strict: {statistics.rows_dropped} of {rows} rows were dropped, see {listed}{told}")


def _within_window(cleaning: Cleaning, window_s: float) -> Cleaning:
    if cleaning.max_seconds <= window_s:
        return cleaning
    log.info("clips of up to %g s are kept: this model's window holds no more", window_s)
    return replace(cleaning, max_seconds=window_s)


def _work_dir(bundle_dir: Path) -> Path:
    whole = bundle_dir.absolute()
    return whole.with_name(f"{whole.name}.work")


def _what_verdicts_depend_on(
    cleaning: Cleaning, mel: tuple[int, int] | None, tokenizer: WhisperTokenizer
) -> dict[str, Any]:
    later = ("split", "split_seed", "strict", "keep_repeats")
    limits = {name: value for name, value in asdict(cleaning).items() if name not in later}
    vocabulary = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    return {**limits, "mel": mel, "prompt": tokenizer.prefix_tokens, "tokenizer": vocabulary}
