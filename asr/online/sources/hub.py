"""Datasets on the Hugging Face Hub, as parquet or audio folders, and three Korean ones whose layout is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asr.online.sources.hub_files import open_repository
from asr.online.sources.hub_layout import AUDIO_FOLDER, lay_out
from asr.online.sources.hub_splits import Split, open_folder, open_parquet
from asr.online.sources.row import SPLIT_NAMES, Announce, Row, row_from
from asr.shared.tables.cells import printable
from asr.shared.tables.paths import PathMap
from asr.shared.tables.records import Malformed
from config import Data
from utils import UserError, log


@dataclass(frozen=True)
class HubSource:
    """A dataset on the Hub.

    Attributes:
        name: of the source.
        id: owner/name.
        config: its configuration (subset), or None for its default.
        revision: branch, tag or commit.
        splits: ours to theirs, theirs joined by "+" where they are several; empty where their names say what they are.
        columns: role (audio, text, speaker, group, split) to column, where a usual name does not tell.
    """

    name: str
    id: str
    config: str | None = None
    revision: str = "main"
    splits: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def flag(self) -> str:
        """What the user gave to mean it."""
        return f"--hub-dataset {self.id}" if self.name == "hub" else f"--source {self.name} ({self.id})"


PRESETS = {
    # 51.6 h by 105 speakers, and a test split by 10 others; no validation split.
    "zeroth-korean": HubSource(
        "zeroth-korean",
        "kresnik/zeroth_korean",
        splits={"train": "train", "test": "test"},
        columns={"audio": "audio", "text": "text", "speaker": "speaker_id"},
    ),
    # raw_transcription has the sentence as it was written, which is how Whisper writes; transcription is lower-cased
    # and has lost its punctuation. Speakers are not told apart.
    "fleurs-ko": HubSource(
        "fleurs-ko",
        "google/fleurs",
        "ko_kr",
        splits={"train": "train", "validation": "validation", "test": "test"},
        columns={"audio": "audio", "text": "raw_transcription"},
    ),
    # original_script has numerals as in ordinary writing ("20분"), which is how Whisper writes; expanded_script spells
    # them out ("이십 분"). One speaker, so no column for it. CC BY-NC-SA: not for commercial use.
    "kss": HubSource(
        "kss", "Bingsu/KSS_Dataset", splits={"train": "train"}, columns={"audio": "audio", "text": "original_script"}
    ),
}


def preset(name: str) -> HubSource:
    """Return one of `PRESETS`."""
    return PRESETS[name]


def described(data: Data) -> HubSource:
    """Return the dataset that the --hub flags describe."""
    splits: dict[str, str] = {}
    for pair in data.hub.hub_splits:
        ours, _, theirs = pair.partition("=")
        splits[ours] = f"{splits[ours]}+{theirs}" if ours in splits else theirs
    return HubSource("hub", data.hub.hub_dataset or "", data.hub.hub_config, data.hub.hub_revision, splits)


def check(wanted: HubSource) -> None:
    """Look whether the id can be one; the Hub is not asked, for a cached copy needs no network.

    Raises:
        UserError: it cannot.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(wanted.id)
    except HFValidationError:
        raise UserError(f"{wanted.flag}: an id is needed, such as kresnik/zeroth_korean") from None


def read(wanted: HubSource, named: Mapping[str, str], announce: Announce) -> Iterator[Row]:
    """Download a dataset, or find it in the cache, and yield the rows of its splits.

    Args:
        wanted: the dataset.
        named: role to column, where the user names one; that outranks what `wanted` says.
        announce: told the number of rows of a split before the first of them.

    Raises:
        UserError: it cannot be had, or is stored in another way.
    """
    repository = open_repository(wanted.id, wanted.revision, wanted.flag)
    stored, splits = lay_out(repository, wanted.config)
    log.info("%s: commit %s has the splits %s", wanted.id, repository.commit, ", ".join(splits))
    open_split = open_folder if stored == AUDIO_FOLDER else open_parquet
    names = _mapped(wanted, splits)
    # All of them are downloaded before the first row, for rows take hours and a download can fail at once.
    opened = [open_split(repository, splits[theirs], {**wanted.columns, **named}) for theirs, _ in names]
    for split, (theirs, ours) in zip(opened, names, strict=True):
        yield from _rows(wanted, split, theirs, ours, announce)


def _rows(wanted: HubSource, split: Split, theirs: str, ours: str, announce: Announce) -> Iterator[Row]:
    announce(split.count)
    for number, record in enumerate(split.records, start=1):
        source_id = f"hub/{wanted.id}/{theirs}:{number}"
        if isinstance(record, Malformed):
            yield Row(wanted.name, source_id, b"", "", ours, refused="malformed row", detail=record.detail)
            continue
        row = row_from(record, split.columns, PathMap((), Path()), wanted.name, source_id, ours)
        if isinstance(row.audio, Path) and row.audio not in split.files:
            row = replace(row, audio=b"", refused="audio not in the dataset", detail=printable(str(row.audio), 200))
        yield row


# Splits


def _mapped(wanted: HubSource, splits: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names of the splits to read, each with ours."""
    pairs = [(name, ours) for ours, theirs in wanted.splits.items() for name in theirs.split("+")]
    for name, _ in pairs:
        if name not in splits:
            raise UserError(f"{wanted.flag}: there is no split '{name}' (--hub-splits), only {', '.join(splits)}")
    unknown = [name for name in splits if name.lower() not in SPLIT_NAMES]
    if unknown and not pairs:
        example = f"--hub-splits train={unknown[0]}"
        raise UserError(f"{wanted.flag} has the splits {', '.join(splits)}: say which is which, as {example}")
    return pairs or [(name, SPLIT_NAMES[name.lower()]) for name in splits]
