"""Test sets: the clips that systems are compared on, from a bundle, another stored dataset, or a table of one's own."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from asr.offline.hearing import Clip, Heard, hear_all
from asr.offline.results import Utterances, told_apart
from asr.offline.saved_rows import clips_of, fingerprint_of_split, is_saved, rows_of_bundle, saved_rows, sealed_split
from asr.offline.table_clips import clips_of_table
from asr.offline.utterance_table import BYTE_ORDER_MARK, guarded
from asr.shared.audio import SAMPLE_RATE, AudioError, encode_flac, load_audio
from asr.shared.bundle import Bundle, open_bundle
from asr.shared.clips import samples_of, spectrum_of
from asr.shared.features import HOP_LENGTH
from asr.shared.tables.cells import printable
from asr.shared.tables.formats import READERS
from asr.shared.text import clean_text
from config import TableColumns
from utils import UserError

if TYPE_CHECKING:
    import torch

    from asr.shared.features import LogMel

MAY_BE = (
    "it may be a bundle, a split of one (bundle/data/validation), another folder that datasets.load_from_disk opens, "
    f"or a table ({' '.join(READERS)})"
)
# What Whisper's window holds.
LONGEST_S = 30
# Frames beyond the real length, in which a stored spectrum fades.
MOST_FADING = 3


@dataclass(frozen=True)
class LeftOut:
    """A row that cannot be measured, and why, in the words of the preparation's dropped.csv."""

    source_id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class TestSet:
    """Clips with what is said in them. Audio is read when it is asked for, and not kept.

    Attributes:
        utterances: everything but the audio.
        fingerprint: SHA-256 over the audio and its order, in hexadecimal. Equal fingerprints, equal audio; of a sealed
            bundle it is made of the manifest's checksums, so that its texts and speakers count too.
        left_out: rows that cannot be measured, in their order.
        lengths: samples of each clip at 16 kHz.
        row: gives the audio of a clip as a row of the bundle has it, under "audio" or "log_mel".
        has_audio: False where a bundle stores features.
        language, task: of its bundle; None where there is none.
    """

    __test__ = False

    utterances: Utterances
    fingerprint: str
    left_out: list[LeftOut]
    lengths: list[int]
    row: Callable[[int], Mapping[str, Any]]
    has_audio: bool = True
    language: str | None = None
    task: str | None = None

    def __len__(self) -> int:
        return len(self.utterances)

    def samples(self, at: int) -> int:
        """Return the length of a clip in samples at 16 kHz, which no file is opened for."""
        return self.lengths[at]

    def waveform(self, at: int) -> np.ndarray:
        """Return the sound of a clip.

        Returns:
            float32 in [-1, 1], 16 kHz, shape (samples,).

        Raises:
            UserError: its file is gone or has changed; or the bundle stores features.
        """
        if not self.has_audio:
            raise UserError(f"{self.utterances.name} stores features, no sound: prepare its bundle with --store audio")
        return load_audio(self.row(at)["audio"]["bytes"])

    def spectrum(self, at: int, log_mel: LogMel) -> torch.Tensor:
        """Return the log-mel spectrum of a clip, as `spectrum_of` does.

        Returns:
            float32, shape (num_mel_bins, frames).

        Raises:
            UserError: as from `waveform`; or features are stored for a model with another number of mel bins.
            ValueError: the clip is longer than the model's window.
        """
        row = self.row(at)
        if not self.has_audio:
            frames, rest = divmod(len(row["log_mel"]) // 2, log_mel.num_mel_bins)
            if rest or not 0 <= frames - self.lengths[at] // HOP_LENGTH <= MOST_FADING:
                raise UserError(
                    f"{self.utterances.name} stores features for a model with other than {log_mel.num_mel_bins} mel "
                    "bins: prepare its bundle with --store audio"
                )
        return spectrum_of(row, log_mel)

    def audio(self, at: int) -> bytes | None:
        """Return a clip as 16 kHz FLAC, which a browser plays; None where features are stored.

        Raises:
            UserError: its file is gone or has changed.
        """
        return encode_flac(self.waveform(at)) if self.has_audio else None


def open_test_set(path: Path, columns: TableColumns, flag: str) -> TestSet:
    """Open what a flag names. Of a table each audio file is read once, for its length, loudness and fingerprint.

    Args:
        path: a bundle (its test split counts), a split within a bundle, another dataset saved by `datasets` (a
            DatasetDict's test split counts), or a table.
        columns: which column of a table is which, and where its audio lies.
        flag: as --data; messages begin with it.

    Raises:
        UserError: it is missing, nothing of the kind, or without a row that can be measured.
        BundleError: the bundle is unfinished or damaged.
    """
    where = f"{flag} {path}"
    if not os.path.exists(path):
        raise UserError(f"{where}: there is no such file or folder; {MAY_BE}")
    if not os.path.isdir(path):
        if path.suffix.lower() not in READERS:
            raise UserError(f"{where}: this is none of what can be measured; {MAY_BE}")
        return _heard(clips_of_table(path, columns, flag), printable(path.stem, None), where)
    folder = Path(os.path.abspath(path))
    if sealed := sealed_split(folder):
        bundle, split = sealed
        return _bundled(open_bundle(bundle), split, bundle.name if split == "test" else split, where)
    if not is_saved(folder):
        raise UserError(f"{where}: this folder is none of what can be measured; {MAY_BE}")
    return _stored(saved_rows(folder, where), folder.name, where)


def bundle_test_set(bundle: Bundle, split: str = "test") -> TestSet:
    """Open a split of a verified bundle.

    Raises:
        UserError: it has no such split, or the split has no clips.
    """
    return _bundled(bundle, split, split, str(bundle.data_dir))


def left_out_csv(sets: Sequence[TestSet]) -> str:
    """Return the rows that were left out of several sets, as a table that opens in a spreadsheet, Korean included.

    Columns: set, source_id, reason, detail; texts are guarded as in utterances.csv.
    """
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("set", "source_id", "reason", "detail"))
    for one in sets:
        for row in one.left_out:
            writer.writerow(map(guarded, (one.utterances.name, row.source_id, row.reason, row.detail)))
    return BYTE_ORDER_MARK + table.getvalue()


def with_own_names(sets: Sequence[TestSet]) -> list[TestSet]:
    """Return the sets with a number behind a name that another one has, too."""
    names = told_apart([one.utterances.name for one in sets])
    return [replace(one, utterances=replace(one.utterances, name=name)) for one, name in zip(sets, names, strict=True)]


def notes_of(one: TestSet) -> list[str]:
    """Return what a reader of the figures must know of a set: what was left out of it, and what was cut."""
    notes = []
    if one.left_out:
        reasons = Counter(row.reason for row in one.left_out).most_common()
        told = ", ".join(f"{reason} {count:,}" for reason, count in reasons)
        rows = len(one) + len(one.left_out)
        notes.append(f"{len(one.left_out):,} of {rows:,} rows were left out ({told}): left_out.csv lists them.")
    longer = sum(samples > LONGEST_S * SAMPLE_RATE for samples in one.lengths)
    if longer:
        notes.append(f"{longer:,} clips are longer than {LONGEST_S} s, and were cut where they are quietest.")
    return notes


def _bundled(bundle: Bundle, split: str, name: str, where: str) -> TestSet:
    stored = _stored(rows_of_bundle(bundle, split, where), name, where, fingerprint_of_split(bundle, split))
    return replace(stored, language=bundle.language, task=bundle.task)


def _stored(rows: Dataset, name: str, where: str, fingerprint: str = "") -> TestSet:
    """Make a set of rows with our own columns; without a fingerprint it is made of their audio."""
    if "log_mel" in rows.features:
        return _featured(rows, name, fingerprint)
    return _heard(clips_of(rows, name), name, where, fingerprint)


def _heard(clips: Sequence[Clip], name: str, where: str, fingerprint: str = "") -> TestSet:
    """Listen to all clips, and make a set of those that can be measured."""
    kept: list[tuple[Clip, Heard]] = []
    left_out = []
    for clip, heard in zip(clips, hear_all(clips, f"reading {name}"), strict=True):
        if isinstance(heard, Heard):
            kept.append((clip, heard))
        else:
            left_out.append(LeftOut(clip.source_id, heard.reason, str(heard)))
    if kept and not any(clean_text(clip.text) for clip, _ in kept):
        raise UserError(f"{where}: none of its texts holds anything; without texts nothing can be measured")
    if not kept:
        first = [f"; {row.source_id}: {row.reason} ({row.detail})" for row in left_out[:1]]
        raise UserError("".join([f"{where}: none of its {len(clips)} rows can be measured", *first]))

    def row(at: int) -> dict[str, Any]:
        return {"audio": {"bytes": _sound_again(*kept[at])}}

    fingerprint = fingerprint or hashlib.sha256(b"".join(heard.digest for _, heard in kept)).hexdigest()
    return TestSet(_utterances(name, kept), fingerprint, left_out, [heard.samples for _, heard in kept], row)


def _utterances(name: str, kept: Sequence[tuple[Clip, Heard]]) -> Utterances:
    return Utterances(
        name,
        [clip.source_id for clip, _ in kept],
        [clean_text(clip.text) for clip, _ in kept],
        [heard.samples / SAMPLE_RATE for _, heard in kept],
        [clip.speaker or None for clip, _ in kept],
        [clip.source or None for clip, _ in kept],
        [heard.loudness_db for _, heard in kept],
    )


def _sound_again(clip: Clip, heard: Heard) -> bytes:
    """Read a clip once more; a text of another sound would be kept as if it were of the first."""
    try:
        data = clip.sound()
    except AudioError as error:
        raise UserError(f"{clip.source_id}: {error}; it was there when the set was opened") from None
    if hashlib.sha256(data).digest() != heard.digest:
        raise UserError(f"{clip.source_id}: its audio has changed since the set was opened; start again")
    return data


def _featured(rows: Dataset, name: str, fingerprint: str) -> TestSet:
    digest = hashlib.sha256()
    for row in () if fingerprint else rows.select_columns(["log_mel"]):
        digest.update(hashlib.sha256(row["log_mel"]).digest())
    utterances = Utterances(
        name,
        list(rows["source_id"]),
        list(map(clean_text, rows["text"])),
        list(rows["duration_s"]),
        [speaker or None for speaker in rows["speaker"]],
        [source or None for source in rows["source"]],
        [None] * len(rows),
    )
    lengths = [samples_of({"duration_s": seconds}) for seconds in utterances.durations_s]
    spectra = rows.select_columns(["log_mel"])
    return TestSet(utterances, fingerprint or digest.hexdigest(), [], lengths, spectra.__getitem__, has_audio=False)
