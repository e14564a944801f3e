"""Verification: everything that is not as the manifest says, file by file, before and after a bundle is carried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asr.shared.bundle import PARTS, read_manifest
from asr.shared.checksums import Trouble, compare_contents, compare_sizes, extras, files_below
from asr.shared.memory import remember, stamps_of
from asr.shared.meter import in_bytes
from asr.shared.project import ROOT, TO_EDIT, compare_project
from utils import BundleError, log

MOST_LISTED = 50
KINDS = ("missing", "extra", "shorter", "longer", "altered", "unreadable")


def verify(bundle_dir: Path, quick: bool = False, project_dir: Path = ROOT) -> None:
    """Compare bundle and project with the manifest, and print what is wrong, a line a file; or one line if nothing is.

    Args:
        bundle_dir: the bundle.
        quick: names and sizes only; of the project, which is small, every byte all the same.
        project_dir: the project beside it.

    Raises:
        UserError: there is no such folder.
        BundleError: the manifest is missing or damaged, or something is not as it says.
    """
    bundle = read_manifest(bundle_dir)
    files = bundle.manifest["files"]
    stamps = stamps_of(bundle_dir, files)
    compare = compare_sizes if quick else compare_contents
    troubles = [*compare(bundle_dir, files), *extras(bundle_dir, PARTS, files)]
    broken, edited = compare_project(bundle.manifest["project"], project_dir)
    _tell_notes(bundle_dir, edited)
    if troubles or broken:
        _list([*troubles, *broken])
        raise BundleError(_summary(bundle_dir, troubles, broken))
    if not quick:
        remember(bundle_dir, bundle.manifest_sha256, stamps)
    checked = "present in their sizes (contents not read)" if quick else "whole"
    size = in_bytes(sum(entry["size"] for entry in files.values()))
    project = len(bundle.manifest["project"])
    print(f"{bundle_dir}: all {len(files)} files, {size}, and {project} files of the project are {checked}")


def _tell_notes(bundle_dir: Path, edited: Sequence[str]) -> None:
    for name in edited:
        if name.startswith(TO_EDIT):
            log.info("note: %s was edited", name)
        else:
            log.warning("warning: %s differs: it was edited, or is of another version", name)
    _, passed = files_below(bundle_dir, PARTS)
    if passed:
        log.info("note: %d hidden files are passed over, the first is %s", len(passed), printable(passed[0]))


def _list(troubles: Sequence[Trouble]) -> None:
    for trouble in troubles[:MOST_LISTED]:
        print(f"{trouble.kind:10} {printable(trouble.name)}: {trouble.told}")
    if len(troubles) > MOST_LISTED:
        print(f"and {len(troubles) - MOST_LISTED} more")


def _summary(bundle_dir: Path, troubles: Sequence[Trouble], broken: Sequence[Trouble]) -> str:
    kinds = [trouble.kind for trouble in (*troubles, *broken)]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS if kind in kinds)
    where = [str(bundle_dir)] if troubles else []
    where += ["the project"] if broken else []
    only_extra = all(kind == "extra" for kind in kinds)
    remedy = "remove what is extra" if only_extra else "copy these files again"
    return f"{' and '.join(where)}: not as the manifest says ({counts}); {remedy}"


def printable(name: str) -> str:
    """Return a file name as any terminal takes it."""
    clean = name.encode("utf-8", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in clean)
