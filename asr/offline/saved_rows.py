"""Saved rows: what `datasets` wrote to the disk, within a sealed bundle or elsewhere, as clips that can be heard."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, DatasetDict, load_from_disk

from asr.offline.hearing import Clip
from asr.shared.audio import AudioError
from asr.shared.bundle import MANIFEST, Bundle
from asr.shared.clips import clip_columns
from asr.shared.tables.cells import printable
from utils import UserError

# By one of them `datasets` knows what it saved.
SAVED = ("dataset_dict.json", "state.json")


def is_saved(folder: Path) -> bool:
    """Whether `datasets` may have written a folder."""
    return any((folder / name).is_file() for name in SAVED)


def sealed_split(folder: Path) -> tuple[Path, str] | None:
    """Return the bundle that a folder is, or whose data or split it is, and the split that is meant.

    Args:
        folder: an absolute path.
    """
    places = [(folder, "test")]
    if folder.name == "data":
        places.append((folder.parent, "test"))
    if folder.parent.name == "data":
        places.append((folder.parent.parent, folder.name))
    return next((found for found in places if (found[0] / MANIFEST).is_file()), None)


def rows_of_bundle(bundle: Bundle, split: str, where: str) -> Dataset:
    """Return the clips of a split.

    Raises:
        UserError: there are none.
    """
    splits = load_from_disk(str(bundle.data_dir))
    if split not in splits or not len(splits[split]):
        raise UserError(f"{where} has no {split} clips: there is nothing to measure")
    return splits[split]


def fingerprint_of_split(bundle: Bundle, split: str) -> str:
    """Return a SHA-256 that changes with the clips of a split, made of what the manifest says of their files."""
    files = sorted(bundle.manifest["files"].items())
    clips = [entry["sha256"] for name, entry in files if name.startswith(f"data/{split}/") and name.endswith(".arrow")]
    return hashlib.sha256("".join(clips).encode()).hexdigest()


def saved_rows(folder: Path, where: str) -> Dataset:
    """Open a dataset that lies outside of any bundle, or the test split of several.

    Raises:
        UserError: it is damaged or empty, has no test split, or its columns are not those of a bundle's data.
    """
    try:
        found = load_from_disk(str(folder))
    # A damaged one makes it raise whatever its parsers happen to meet.
    except Exception as error:
        told = printable((str(error).splitlines() or [type(error).__name__])[0], 200)
        raise UserError(f"{where} cannot be opened: {told}") from None
    if isinstance(found, DatasetDict):
        if "test" not in found:
            raise UserError(f"{where} has no split 'test', only {', '.join(found)}: name the folder of one")
        found = found["test"]
    if not len(found):
        raise UserError(f"{where} has no clips: there is nothing to measure")
    expected = clip_columns("features" if "log_mel" in found.features else "audio")
    for name, kind in expected.items():
        if name != "labels" and found.features.get(name) != kind:
            raise UserError(f"{where}: column '{name}' is missing, or of another type than in a bundle's data")
    return found.with_format(None)


def clips_of(rows: Dataset, name: str) -> list[Clip]:
    """Return rows with audio as clips that can be heard.

    Args:
        name: what a row is called that has no name of its own.
    """
    sounds = rows.select_columns(["audio"])
    said = rows.select_columns(["source_id", "text", "speaker", "source"])
    return [
        Clip(one["source_id"] or f"{name}:{at}", one["text"] or "", one["speaker"], one["source"], _sound(sounds, at))
        for at, one in enumerate(said)
    ]


def _sound(sounds: Dataset, at: int) -> Callable[[], bytes]:
    def sound() -> bytes:
        data = (sounds[at]["audio"] or {}).get("bytes")
        if not data:
            raise AudioError("column audio holds no bytes", "no audio named")
        return data

    return sound
