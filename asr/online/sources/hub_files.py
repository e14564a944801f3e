"""Files of a dataset on the Hugging Face Hub, all of one commit, in the cache of huggingface_hub.

`datasets.load_dataset` is not used: it would download every split whatever is asked for, keep a second copy of all
audio as Arrow, need torchcodec for audio folders, and without a network take the newest copy for any revision.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from asr.online.retries import keep_asking
from asr.shared.progress import progress_bar
from utils import UserError, log, sha256_of

# What says how the files make splits. .gitattributes says nothing, but every repository has one.
CARD = ["README.md", ".huggingface.yaml", ".gitattributes"]
# Smaller files come several at a time under one bar; larger ones one by one, so that Ctrl-C ends the download at once.
SMALL = 20 << 20
AT_A_TIME = 8

T = TypeVar("T")


@dataclass(frozen=True)
class Repository:
    """A dataset's files at one commit.

    Attributes:
        id: owner/name.
        commit: which all downloads are of.
        folder: where they lie once they are here.
        sizes: every file of the commit, in bytes.
        flag: what the user gave to mean it, for messages.
    """

    id: str
    commit: str
    folder: Path
    sizes: dict[str, int]
    flag: str


def open_repository(name: str, revision: str, flag: str) -> Repository:
    """Find the commit that a revision is and the files that it has; without a network, those in the cache.

    Args:
        name: owner/name.
        revision: branch, tag or commit.
        flag: for messages.

    Raises:
        UserError: there is no such dataset or revision, it is closed to us, or neither Hub nor cache has it.
    """
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download

    with _told_in_words(name, revision, flag):
        # Without a network this takes the commit that the cache has for a branch, and says so.
        commit = _ask(lambda: HfApi().resolve_revision(name, repo_type="dataset", revision=revision)).resolved
        of_commit: dict[str, Any] = {"repo_type": "dataset", "revision": commit}
        with quietly():
            folder = _ask(lambda: snapshot_download(name, **of_commit, allow_patterns=CARD, tqdm_class=_no_bar()))
        files = get_cached_repo_tree(name, **of_commit)
    return Repository(name, commit, Path(folder), {file.path: file.size for file in files}, flag)


def fetch(repository: Repository, names: list[str]) -> dict[str, Path]:
    """Bring files here, those that are not here yet, and return where each lies. Their SHA-256 is verified.

    Raises:
        UserError: a file cannot be had whole.
    """
    small = [name for name in names if repository.sizes[name] < SMALL]
    large = [name for name in names if repository.sizes[name] >= SMALL]
    with _told_in_words(repository.id, repository.commit, repository.flag), quietly():
        found = _fetch_small(repository, small) | {name: _fetch_large(repository, name) for name in large}
    return {name: found[name] for name in names}


def _fetch_small(repository: Repository, names: list[str]) -> dict[str, Path]:
    fetch_one = functools.partial(_fetch, repository, bar=_no_bar())
    missing = sum(not (repository.folder / name).exists() for name in names)
    pool = ThreadPoolExecutor(AT_A_TIME)
    try:
        paths = pool.map(fetch_one, names)
        told = {"desc": f"fetching {repository.id}", "unit": "file", "disable": missing < 2}
        return dict(zip(names, progress_bar(paths, total=len(names), **told), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch_large(repository: Repository, name: str) -> Path:
    if not (repository.folder / name).exists():
        log.info("downloading %s of %s (%.0f MB)", name, repository.id, repository.sizes[name] / 1e6)
    return _fetch(repository, name)


def _fetch(repository: Repository, name: str, bar: Any = None) -> Path:
    from huggingface_hub import hf_hub_download

    def download() -> Path:
        path = hf_hub_download(repository.id, name, repo_type="dataset", revision=repository.commit, tqdm_class=bar)
        return Path(path)

    path = _ask(download)
    if not _is_whole(path):
        log.info("%s of %s is damaged; fetching it again", name, repository.id)
        for part in (path.resolve(), path.parent / os.readlink(path), path):
            part.unlink(missing_ok=True)
        path = _ask(download)
        if not _is_whole(path):
            raise UserError(
                f"{repository.flag}: {name} arrived twice with other bytes than the Hub lists: "
                "a proxy may alter it, or the disk may be failing"
            )
    return path


def _is_whole(path: Path) -> bool:
    """Compare a large file with its SHA-256, which the cache has for its name; sizes alone were compared so far."""
    digest = Path(os.readlink(path)).name if path.is_symlink() else ""
    return len(digest) != 64 or sha256_of(path) == digest


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what huggingface_hub warns of out of the log: signed URLs, and what is told in other words here."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _no_bar() -> type:
    from tqdm import tqdm

    class NoBar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    return NoBar


def _ask(ask: Callable[[], T]) -> T:
    """Ask the Hub, again where the trouble may pass."""
    import httpx2
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionResolutionError, XetDownloadError

    def ask_plainly() -> T:
        try:
            return ask()
        except (LocalEntryNotFoundError, RevisionResolutionError) as error:
            # What is wrapped says whether it may pass.
            raise (error.__cause__ or error) from None
        except XetDownloadError as error:
            raise httpx2.ReadError(str(error)) from None
        except OSError as error:
            # A connection that ended early is told as a file of the wrong size.
            if str(error).startswith("Consistency check failed"):
                raise httpx2.ReadError("the connection ended early") from None
            raise

    return keep_asking(ask_plainly)


@contextmanager
def _told_in_words(name: str, revision: str, flag: str) -> Iterator[None]:
    """Turn what the Hub's library can raise into a UserError. URLs are left out: those of large files are signed."""
    import httpx2
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/datasets/{name}"
    try:
        yield
    except GatedRepoError:
        reason = f"it is gated: accept its terms at {page}, and set HF_TOKEN to a token of that account"
    except (RepositoryNotFoundError, HFValidationError):
        reason = "the Hub has no such dataset, or it is private: check its name, or set HF_TOKEN to open it"
    except RevisionNotFoundError:
        reason = f"it has no branch, tag or commit '{revision}' (--hub-revision)"
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set, and it is not wholly in the cache: unset it for the download"
    except HfHubHTTPError as error:
        reason = _answered(error.response.status_code, page)
    except (httpx2.HTTPError, EntryNotFoundError) as error:
        said = (str(error).splitlines() or [""])[0]
        reason = f"the Hub cannot be reached, and it is not wholly in the cache ({type(error).__name__}: {said})"
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"it cannot be stored: {error.strerror or error}" + ("; make room, or set HF_HOME" if full else "")
    else:
        return
    raise UserError(f"{flag}: {reason}")


def _answered(status: int, page: str) -> str:
    if status == 401:
        return "the Hub refuses the token in HF_TOKEN: it may have expired"
    if status == 403:
        return f"the token in HF_TOKEN may not read it: accept its terms at {page}, or give the token that right"
    return f"the Hub answered {status}, again and again: try later; what has arrived is kept"
