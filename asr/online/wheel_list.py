"""The list of a wheelhouse: which wheels it holds, what the box must have for them, and what pip is to install."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from asr.online.resolution import Wheel
from asr.online.target import Target
from asr.shared.checksums import digests_of
from asr.shared.driver import OLDEST_DRIVER
from asr.shared.installing import FORMAT, LIST, REQUIREMENTS
from utils import sha256_of, write_atomically, write_json

# The first glibc of each manylinux name that does not tell it.
OLD_NAMES = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}


def versions_before(folder: Path) -> dict[str, str]:
    """Return the versions that the wheelhouse holds already, by name; none where it is new or unfinished."""
    try:
        wheels = json.loads((folder / LIST).read_text(encoding="utf-8"))["wheels"]
        return {str(wheel["name"]): str(wheel["version"]) for wheel in wheels}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_list(folder: Path, target: Target, found: list[Wheel]) -> dict[str, Any]:
    """Write requirements.txt with the exact wheels, and wheels.json last of all; return what the latter holds."""
    paths = [folder / wheel.file for wheel in found]
    sizes = [path.stat().st_size for path in paths]
    digests = [str(digest) for digest in digests_of(paths, "listing", sum(sizes))]
    entries = [
        {"name": wheel.name, "version": wheel.version, "file": wheel.file, "size": size, "sha256": digest}
        for wheel, size, digest in zip(found, sizes, digests, strict=True)
    ]
    pip = next(wheel.file for wheel in found if wheel.name == "pip")
    packages = [entry for entry in entries if entry["file"] != pip]
    lines = [f"{entry['name']}=={entry['version']} --hash=sha256:{entry['sha256']}\n" for entry in packages]
    write_atomically(folder / REQUIREMENTS, f"# The wheels beside it, for {target.told}.\n{''.join(lines)}")
    cuda = _cuda_of(found)
    contents = {
        "format": FORMAT,
        "target": {
            "python": target.minor,
            "platform": target.platform,
            "glibc": _oldest(found, "manylinux"),
            "macos": _oldest(found, "macosx"),
        },
        "torch": {
            "version": next((wheel.version for wheel in found if wheel.name == "torch"), None),
            "cuda": cuda,
            "driver": OLDEST_DRIVER.get(int(cuda.partition(".")[0])) if cuda else None,
        },
        "pip": pip,
        "size": sum(sizes),
        "unpacked": sum(_unpacked(folder / wheel.file) for wheel in found if wheel.file != pip),
        "requirements": {
            "file": REQUIREMENTS,
            "size": (folder / REQUIREMENTS).stat().st_size,
            "sha256": sha256_of(folder / REQUIREMENTS),
        },
        "wheels": entries,
    }
    write_json(folder / LIST, contents)
    return contents


def _cuda_of(found: list[Wheel]) -> str | None:
    """Return the CUDA version of torch, as 12.6 or 13.0, or None for a build without CUDA."""
    versions = {wheel.name: wheel.version for wheel in found}
    local = versions.get("torch", "").partition("+")[2]
    if local:
        named = re.fullmatch(r"cu(\d+)(\d)", local)
        return f"{named[1]}.{named[2]}" if named else None
    # The index's own build tells it by the libraries that it brings.
    if "cuda-toolkit" in versions:
        return ".".join(versions["cuda-toolkit"].split(".")[:2])
    return next((f"{match[1]}.0" for name in versions if (match := re.fullmatch(r"nvidia-\w+-cu(\d+)", name))), None)


def _oldest(found: list[Wheel], family: str) -> str | None:
    """Return the oldest glibc (manylinux) or macOS (macosx) that takes all of the wheels, as 2.28."""
    needed = [min(versions) for wheel in found if (versions := _system_versions(wheel.file, family))]
    return ".".join(map(str, max(needed))) if needed else None


def _system_versions(file: str, family: str) -> list[tuple[int, int]]:
    tags = file.removesuffix(".whl").rpartition("-")[2].split(".")
    old = [version for tag in tags for name, version in OLD_NAMES.items() if tag.startswith(f"{name}_")]
    told = [re.match(rf"{family}_(\d+)_(\d+)_", tag) for tag in tags]
    return [*(old if family == "manylinux" else []), *((int(match[1]), int(match[2])) for match in told if match)]


def _unpacked(wheel: Path) -> int:
    with zipfile.ZipFile(wheel) as archive:
        return sum(entry.file_size for entry in archive.infolist())
