"""Samples: a few clips of the test split, for visitors who have nothing to upload."""

from __future__ import annotations

from pathlib import Path

from asr.shared.bundle import Bundle
from utils import UserError

ENDINGS = {b"fLaC": ".flac", b"RIFF": ".wav", b"OggS": ".ogg"}


def samples_of(bundle: Bundle | None, folder: Path, count: int) -> list[list[str]]:
    """Write so many clips of about the median length into `folder`, and return the path of each with what is said.

    There are none where the bundle has no test split, or keeps features and no audio.
    """
    from asr.offline.saved_rows import rows_of_bundle

    if bundle is None or not count:
        return []
    try:
        rows = rows_of_bundle(bundle, "test", str(bundle.data_dir))
    except UserError:
        return []
    if "audio" not in rows.column_names:
        return []
    by_length = sorted(range(len(rows)), key=rows["duration_s"].__getitem__)
    middle = max(0, len(by_length) // 2 - count // 2)
    samples = []
    for number, place in enumerate(by_length[middle : middle + count], start=1):
        row = rows[place]
        content = row["audio"]["bytes"]
        file = folder / f"{number}{ENDINGS.get(content[:4], '.audio')}"
        file.write_bytes(content)
        samples.append([str(file), row["text"]])
    return samples
