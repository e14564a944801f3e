"""The bundle: the one folder that crosses the gap, and the manifest that vouches for every byte of it."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import BundleError, UserError, sha256_of, write_atomically, write_json

FORMAT = 1
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
# Only these are vouched for: what else a file manager or an editor leaves in the folder changes by itself.
PARTS = ("data", "model", "reports", "wheels")
AGAIN = "copy it again, or run run_online_setup.py again"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: its folder.
        manifest: what manifest.json holds: format, base_model, config, data (counts and hours a split), files.
        manifest_sha256: fingerprint of the manifest, and with it of everything in the bundle.
    """

    path: Path
    manifest: dict[str, Any]
    manifest_sha256: str

    @property
    def data_dir(self) -> Path:
        """Folder of the `datasets.DatasetDict`."""
        return self.path / "data"

    @property
    def model_dir(self) -> Path:
        """Folder of the base Whisper, as transformers opens it."""
        return self.path / "model"

    @property
    def base_name(self) -> str:
        """What the base model is called: its Hub id, or the name of the folder it came from."""
        return self.manifest["base_model"]

    @property
    def language(self) -> str:
        """Language of the labels, as Whisper's tokenizer names it."""
        return self.manifest["config"]["language"]

    @property
    def task(self) -> str:
        """transcribe or translate."""
        return self.manifest["config"]["task"]


def seal(path: Path, base_model: str, config: dict[str, Any], data: dict[str, Any]) -> Bundle:
    """Write the manifest of a finished bundle: last of all, so that a bundle without one is unfinished.

    Args:
        path: the bundle's folder, with everything else in it.
        base_model: what the base model is called.
        config: the settings of the setup.
        data: counts and hours, as reports/data.json has them.
    """
    files = sorted(file for part in PARTS for file in (path / part).rglob("*") if file.is_file())
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(sha256_of, files))
    listed = {
        file.relative_to(path).as_posix(): {"size": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, digests, strict=True)
    }
    content = {"format": FORMAT, "base_model": base_model, "config": config, "data": data, "files": listed}
    write_json(path / MANIFEST, content)
    write_atomically(path / SEAL, f"{sha256_of(path / MANIFEST)}  {MANIFEST}\n")
    return open_bundle(path)


def unseal(path: Path) -> None:
    """Remove the manifest before anything else in the bundle changes."""
    (path / MANIFEST).unlink(missing_ok=True)
    (path / SEAL).unlink(missing_ok=True)


def open_bundle(path: Path) -> Bundle:
    """Verify every file of the bundle and return it.

    Raises:
        UserError: there is no such folder.
        BundleError: unfinished, or a file that is missing, cut short or altered; the message names it.
    """
    if not path.is_dir():
        raise UserError(f"--bundle-dir {path}: there is no such folder; run_online_setup.py makes it")
    manifest, digest = _read_manifest(path)
    files = manifest["files"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda name: _trouble(path / name, files[name]), files))
    damaged = [f"{path / name} {trouble}" for name, trouble in zip(files, found, strict=True) if trouble]
    if damaged:
        others = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise BundleError(f"the bundle is damaged: {damaged[0]}{others}; {AGAIN}")
    return Bundle(path, manifest, digest)


def _read_manifest(path: Path) -> tuple[dict[str, Any], str]:
    manifest, seal_file = path / MANIFEST, path / SEAL
    for file in (manifest, seal_file):
        if not file.is_file():
            raise BundleError(f"{file} is missing: the setup did not finish, or the copy did not; {AGAIN}")
    digest = sha256_of(manifest)
    if seal_file.read_bytes() != f"{digest}  {MANIFEST}\n".encode():
        raise BundleError(f"the bundle is damaged: {manifest} does not match {seal_file.name}; {AGAIN}")
    content = json.loads(manifest.read_text(encoding="utf-8"))
    if content["format"] != FORMAT:
        raise BundleError(f"{manifest} has format {content['format']}, this code reads {FORMAT}: copy the code again")
    return content, digest


def _trouble(file: Path, entry: dict[str, Any]) -> str:
    """Say what is wrong with one file, or nothing."""
    try:
        size = file.stat().st_size
        if size != entry["size"]:
            return f"has {size:,} bytes instead of {entry['size']:,}"
        return "" if sha256_of(file) == entry["sha256"] else "has other content than was written (SHA-256 differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
