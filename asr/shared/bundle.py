"""The bundle: the one folder that crosses the gap, and the manifest that vouches for every byte of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr.shared.checksums import Trouble, compare_contents, compare_sizes, digests_of, extras, files_below
from asr.shared.memory import recall, remember, stamps_of
from asr.shared.project import ROOT, half_copied, list_project
from utils import BundleError, UserError, sha256_of, write_atomically, write_json

FORMAT = 2
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
# The last manifest, from the moment when something changes until the next one tells what did.
PREVIOUS = "manifest.previous.json"
# Only these are vouched for: what else a file manager or an editor leaves in the folder changes by itself.
PARTS = ("data", "model", "reports", "wheels")
AGAIN = "copy it again, or run run_online_setup.py again"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: its folder.
        manifest: what manifest.json holds: format, base_model, config, data (counts and hours a split), and size and
            SHA-256 of all files of the bundle (files) and of the project (project).
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
    names, _ = files_below(path, PARTS)
    stamps = stamps_of(path, names)
    digests = digests_of([path / name for name in names], "sealing", sum(size for size, *_ in stamps.values()))
    listed = {}
    for name, digest in zip(names, digests, strict=True):
        if isinstance(digest, OSError):
            raise digest
        listed[name] = {"size": stamps[name][0], "sha256": digest}
    content = {
        "format": FORMAT,
        "base_model": base_model,
        "config": config,
        "data": data,
        "files": listed,
        "project": list_project(),
    }
    write_json(path / MANIFEST, content)
    write_atomically(path / SEAL, f"{sha256_of(path / MANIFEST)}  {MANIFEST}\n")
    remember(path, sha256_of(path / MANIFEST), stamps)
    return open_bundle(path)


def unseal(path: Path) -> None:
    """Take the manifest away before anything else in the bundle changes; `PREVIOUS` keeps what it said."""
    if (path / MANIFEST).is_file():
        os.replace(path / MANIFEST, path / PREVIOUS)
    (path / SEAL).unlink(missing_ok=True)


def open_bundle(path: Path) -> Bundle:
    """Verify the bundle and return it.

    Names and sizes are compared each time. Contents are read once for each bundle and machine: what was found whole,
    and has not been touched since, is not read again.

    Raises:
        UserError: there is no such folder.
        BundleError: unfinished, or a file that is missing, cut short or altered; the message names it.
    """
    bundle = read_manifest(path)
    files = bundle.manifest["files"]
    # The libraries open what lies in the model's folder by its name: what is left of another model would be taken.
    refuse(path, compare_sizes(path, files) + extras(path, ["model"], files))
    refuse_half_project(bundle)
    known, stamps = recall(path, bundle.manifest_sha256), stamps_of(path, files)
    unknown = {name: entry for name, entry in files.items() if name not in stamps or known.get(name) != stamps[name]}
    if unknown:
        refuse(path, compare_contents(path, unknown, "verifying the bundle (once for each machine)"))
        remember(path, bundle.manifest_sha256, stamps)
    return bundle


def read_manifest(path: Path) -> Bundle:
    """Return the bundle as its manifest tells it; the manifest itself is verified, and nothing else.

    Raises:
        UserError: there is no such folder.
        BundleError: there is no manifest, or it is damaged or of another version.
    """
    if not path.is_dir():
        raise UserError(f"--bundle-dir {path}: there is no such folder; run_online_setup.py makes it")
    manifest, seal_file = path / MANIFEST, path / SEAL
    for file in (manifest, seal_file):
        if not file.is_file():
            raise BundleError(f"{file} is missing: the setup did not finish, or the copy did not; {AGAIN}")
    try:
        digest, sealed = sha256_of(manifest), seal_file.read_bytes()
        if sealed != f"{digest}  {MANIFEST}\n".encode():
            raise BundleError(f"the bundle is damaged: {manifest} does not match {seal_file.name}; {AGAIN}")
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{error.filename or manifest} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{manifest} is no manifest ({error}); {AGAIN}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise BundleError(
            f"{manifest} has format {found}, this code reads {FORMAT}: copy the project that made it, or make it again"
        )
    return Bundle(path, content, digest)


def refuse(path: Path, troubles: Sequence[Trouble]) -> None:
    """Raise a BundleError that names the first of `troubles`, if there are any."""
    if troubles:
        raise BundleError(f"the bundle is damaged: {_first_of(path, troubles)}; {AGAIN}")


def refuse_half_project(bundle: Bundle) -> None:
    """Raise a BundleError where the project here is a copy that was cut off."""
    incomplete = half_copied(bundle.manifest["project"])
    if incomplete:
        raise BundleError(f"the project is incomplete: {_first_of(ROOT, incomplete)}; copy the project again")


def _first_of(path: Path, troubles: Sequence[Trouble]) -> str:
    others = len(troubles) - 1
    listed = f" (and {others} more, run_online_setup.py --verify lists them)" if others else ""
    return f"{path / troubles[0].name} {troubles[0].told}{listed}"
