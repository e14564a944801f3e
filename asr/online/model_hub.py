"""The Hub: a model's files at one commit, resumed where a download broke off, and every byte verified."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from asr.online.retries import keep_asking, told_in_words
from asr.shared.progress import progress_bar
from utils import UserError, log

TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 20
HEXADECIMAL = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """A file as the Hub lists it.

    Attributes:
        name: its path in the repository.
        size: bytes, or None where the Hub does not tell.
        digest: SHA-256 of a large file, git's blob id (SHA-1) of a small one, or "" where the Hub does not tell.
    """

    name: str
    size: int | None
    digest: str


@dataclass(frozen=True)
class HubModel:
    """A model on the Hub at one commit; `files` by name."""

    name: str
    commit: str
    files: dict[str, HubFile]


def list_model(name: str, revision: str) -> HubModel:
    """Ask the Hub which commit a revision is, and which files it has.

    Args:
        name: the model's id.
        revision: branch, tag or commit.

    Raises:
        UserError: there is no such model or revision, it is not open to us, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with told_in_words(name, revision):
        info = keep_asking(lambda: HfApi().model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT_S))
    commit = info.sha or ""
    if not HEXADECIMAL.fullmatch(commit) or info.siblings is None:
        raise UserError("the Hub told no commit and no files; does HF_ENDPOINT name a Hub?")
    files = {}
    for file in info.siblings:
        digest = (file.lfs.sha256 if file.lfs else file.blob_id) or ""
        # It becomes the name of a file here.
        known = digest if HEXADECIMAL.fullmatch(digest) else ""
        files[file.rfilename] = HubFile(file.rfilename, file.size, known)
    return HubModel(name, commit, files)


def download(model: HubModel, names: list[str], copied_to: Path) -> dict[str, Path]:
    """Bring files of a model into the Hub's cache, where other tools find them too, and return where each lies.

    What is there and right is not fetched again, and what broke off goes on where it did, in a later run too.
    huggingface_hub throws a broken-off file away, and a Whisper's weights are one file of gigabytes.

    Args:
        model: as listed.
        names: which of its files.
        copied_to: the folder that needs room for a copy of them.

    Raises:
        UserError: a file cannot be had, is not what the Hub lists, or there is no room for it.
    """
    places = [_Place.of(model, name) for name in names]
    check_room(
        [(place.blob, place.missing_bytes) for place in places]
        + [(copied_to, place.file.size or 0) for place in places]
    )
    missing = sum(place.missing_bytes for place in places)
    bar = progress_bar(desc="downloading", total=missing, unit="B", unit_scale=True, disable=not missing)
    with told_in_words(model.name, model.commit), bar:
        return {place.file.name: _fetch(place, bar.update) for place in places}


def check_room(wanted: list[tuple[Path, int]]) -> None:
    """Refuse what would not fit: bytes to be written below paths, which need not exist yet.

    Raises:
        UserError: a disk has too little room.
    """
    needed: Counter[Path] = Counter()
    for path, size in wanted:
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        same_disk = (known for known in needed if known.stat().st_dev == there.stat().st_dev)
        needed[next(same_disk, there)] += size
    for place, size in needed.items():
        free = shutil.disk_usage(place).free
        if size > free:
            raise UserError(f"the disk of {place} has {free / 1e9:.1f} GB free, and {size / 1e9:.1f} GB are needed")


@dataclass(frozen=True)
class _Place:
    """Where the Hub's cache has a file: its bytes under their digest, and a link to them under its name."""

    model: HubModel
    file: HubFile
    blob: Path
    link: Path

    @classmethod
    def of(cls, model: HubModel, name: str) -> _Place:
        from huggingface_hub.constants import HF_HUB_CACHE
        from huggingface_hub.file_download import repo_folder_name

        file = model.files[name]
        root = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=model.name, repo_type="model")
        blob = root / "blobs" / (file.digest or f"{model.commit}-{name}")
        return cls(model, file, blob, root / "snapshots" / model.commit / name)

    @property
    def partial(self) -> Path:
        return self.blob.with_name(self.blob.name + ".partial")

    @property
    def arrived(self) -> int:
        return self.partial.stat().st_size if self.partial.is_file() else 0

    @property
    def missing_bytes(self) -> int:
        there = self.link.is_file() or self.blob.is_file()
        return 0 if there else max(0, (self.file.size or 0) - self.arrived)


def _fetch(place: _Place, count: Callable[[int], object]) -> Path:
    for known in (place.link, place.blob):
        if known.is_file():
            if _is_right(known, place.file):
                return known if known == place.link else _link(place)
            log.info("%s is damaged in the Hub's cache; fetching it again", place.file.name)
        known.unlink(missing_ok=True)
    place.blob.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        keep_asking(lambda: _stream(place, count), lambda: place.arrived)
        if _is_right(place.partial, place.file):
            os.replace(place.partial, place.blob)
            return _link(place)
        place.partial.unlink()
        log.info("%s: what arrived is not what the Hub lists", place.file.name)
    raise UserError(
        f"{place.file.name} arrived twice with other bytes than the Hub lists (size or SHA differ): "
        "a proxy may alter it, or the disk may be failing"
    )


def _stream(place: _Place, count: Callable[[int], object]) -> None:
    """Append to the partial file what is still missing of it, and tell `count` how many bytes come."""
    import httpx2
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    size = place.file.size
    have = place.arrived if size else 0
    if size and have >= size:
        return
    url = hf_hub_url(place.model.name, place.file.name, revision=place.model.commit)
    # Packed on the way, the bytes could neither be counted nor resumed.
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
        hf_raise_for_status(response)
        # A server that cannot resume answers 200 and sends the whole.
        with open(place.partial, "ab" if response.status_code == 206 else "wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)
                count(len(chunk))
    if size is not None and place.arrived < size:
        raise httpx2.ReadError(f"{place.file.name} ended at byte {place.arrived} of {size}")


def _is_right(path: Path, file: HubFile) -> bool:
    size = path.stat().st_size
    if file.size not in (None, size):
        return False
    if not file.digest:
        return True
    # git's blob id is the SHA-1 of a header and the content.
    small = len(file.digest) == 40
    digest = hashlib.sha1(f"blob {size}\0".encode()) if small else hashlib.sha256()
    with open(path, "rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == file.digest


def _link(place: _Place) -> Path:
    place.link.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.link.symlink_to(os.path.relpath(place.blob, place.link.parent))
    except OSError:
        # Windows links for developers alone; the cache then has the file itself in the link's place.
        os.replace(place.blob, place.link)
    return place.link
