"""The wheelhouse: every package of requirements.txt as a wheel for a box that can fetch none, in bundle/wheels."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from asr.online.resolution import Pip, Wheel, index_flags, parse_pins, resolve, why
from asr.online.target import Target, target_of
from asr.online.wheel_list import versions_before, write_list
from asr.shared.checksums import digests_of
from asr.shared.installing import LIST, WHEELS
from asr.shared.meter import Meter, in_bytes
from config import Wheels
from utils import UserError, log, sha256_of

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# It comes along and installs the rest on the box, whose own may be old or missing. This one resolves without
# fetching the wheels; older ones fetch them twice.
PIP = "26.3"
# Small wheels are fetched together; pip takes half a second to start.
TOGETHER, TOGETHER_BYTES = 20, 64 * 10**6
SECONDS_FOR_A_SIZE = 20
FETCHING = ".fetching."


def collect_wheels(bundle_dir: Path, wheels: Wheels, requirements: Path) -> None:
    """Bring every wheel that `requirements` needs on the target into bundle_dir/wheels, and write down what they are.

    What is there in the right SHA-256 is not fetched again; what no longer belongs is removed.

    Args:
        bundle_dir: the bundle.
        wheels: the flags that describe the target.
        requirements: exact pins of everything that every target has in common.

    Raises:
        UserError: a wheel does not exist for the target, the index cannot be reached, or the disk is too small.
    """
    from packaging.requirements import Requirement

    target = target_of(wheels)
    pins = {**parse_pins(requirements, target), "pip": Requirement(f"pip=={PIP}")}
    folder = bundle_dir / WHEELS
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{FETCHING}*"):
        shutil.rmtree(left, ignore_errors=True)
    log.info("looking for the wheels of %d packages for %s", len(pins), target.told)
    with tempfile.TemporaryDirectory(prefix=FETCHING, dir=folder) as name:
        beside = Path(name)
        pip = Pip(target, _bring_pip(target, beside))
        found = resolve(pip, pins, wheels.wheel_index, versions_before(folder))
        _tell_unpinned(found, pins)
        wanted = _to_fetch(folder, found)
        sizes = _sizes(wanted)
        _announce(folder, found, wanted, sizes)
        if wanted or _strangers(folder, found):
            # Without the list the wheelhouse is unfinished.
            (folder / LIST).unlink(missing_ok=True)
        for file in _strangers(folder, found):
            file.unlink()
            log.info("removed %s: it no longer belongs", file.name)
        _fetch(pip, beside, folder, wanted, sizes, wheels.wheel_index)
    contents = write_list(folder, target, found)
    _tell_result(folder, target, contents)


def _bring_pip(target: Target, folder: Path) -> Path:
    """Fetch the pip that does the rest, and unpack it."""
    own = Pip(target)
    code, lines = own.run("download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), f"pip=={PIP}")
    if code:
        raise UserError(why(lines, target))
    # From within its wheel it would run, too, and be compiled anew each time.
    with zipfile.ZipFile(next(folder.glob("pip-*.whl"))) as wheel:
        wheel.extractall(folder / "unpacked")
    return folder / "unpacked"


def _tell_unpinned(found: list[Wheel], pins: dict[str, Requirement]) -> None:
    more = [f"{wheel.name} {wheel.version}" for wheel in found if wheel.name not in pins]
    if more:
        log.info("the target needs besides: %s", ", ".join(more))
    unvouched = [wheel.file for wheel in found if not wheel.sha256]
    if unvouched:
        log.warning("warning: the index gives no SHA-256 of %s, so that it cannot be verified", ", ".join(unvouched))


# What is there, and what is to come


def _to_fetch(folder: Path, found: list[Wheel]) -> list[Wheel]:
    there = [wheel for wheel in found if wheel.sha256 and (folder / wheel.file).is_file()]
    paths = [folder / wheel.file for wheel in there]
    digests = digests_of(paths, "checking what is there", sum(path.stat().st_size for path in paths))
    whole = {wheel for wheel, digest in zip(there, digests, strict=True) if digest == wheel.sha256}
    return [wheel for wheel in found if wheel not in whole]


def _strangers(folder: Path, found: list[Wheel]) -> list[Path]:
    names = {wheel.file for wheel in found}
    return sorted(file for file in folder.glob("*.whl") if file.name not in names)


def _sizes(wheels: list[Wheel]) -> dict[Wheel, int | None]:
    with ThreadPoolExecutor(16) as pool:
        return dict(zip(wheels, pool.map(lambda wheel: _size(wheel.url), wheels), strict=True))


def _size(url: str) -> int | None:
    """Return the size of a file on an index, or None where the server does not tell it."""
    parts = urlsplit(url)
    try:
        if parts.scheme == "file":
            return Path(urllib.request.url2pathname(parts.path)).stat().st_size
        # pip has its own list of certificates; who replaces it does so for both.
        trusted = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=SECONDS_FOR_A_SIZE, context=trusted) as answer:
            length = answer.headers.get("Content-Length", "")
            return int(length) if length.isdigit() else None
    except (OSError, ValueError):
        return None


def _announce(folder: Path, found: list[Wheel], wanted: list[Wheel], sizes: dict[Wheel, int | None]) -> None:
    """Tell what is about to happen, and whether there is room for it."""
    unknown = [wheel for wheel in wanted if sizes[wheel] is None]
    to_come = sum(size or 0 for size in sizes.values())
    there = sum((folder / wheel.file).stat().st_size for wheel in found if wheel not in sizes)
    least = "at least " if unknown else ""
    log.info("%d wheels, %s%s in all; to fetch: %d, %s%s", len(found), least, in_bytes(there + to_come),
             len(wanted), least, in_bytes(to_come))  # fmt: skip
    if unknown:
        log.info("the index does not tell the size of %d wheels, such as %s", len(unknown), unknown[0].file)
    # pip fetches a file for itself, then copies it.
    needed = to_come + max([size or 0 for size in sizes.values()], default=0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"{folder} has {in_bytes(free)} free, and the wheels need {in_bytes(needed)}: make room")


# Fetching


def _fetch(
    pip: Pip, beside: Path, folder: Path, wanted: list[Wheel], sizes: dict[Wheel, int | None], index: str | None
) -> None:
    """Fetch wheels, a few at a time, each into its place as soon as it is whole."""
    meter = Meter("fetching wheels", sum(size or 0 for size in sizes.values()))
    try:
        for number, group in enumerate(_groups(wanted, sizes)):
            dest = beside / str(number)
            arrived = meter.done
            code, lines = pip.run(
                "download", "--no-deps", "--progress-bar", "raw", "--dest", str(dest),
                *pip.target.pip_flags(), *index_flags(index), *map(_requirement, group),
                on_line=_counter(meter),
            )  # fmt: skip
            if code:
                raise UserError(why(lines, pip.target))
            for wheel in group:
                _put_in_place(dest / wheel.file, folder / wheel.file, wheel)
            # What pip had in its cache, or on this disk, it does not report.
            meter.add(arrived + sum(sizes[wheel] or 0 for wheel in group) - meter.done)
            shutil.rmtree(dest)
    finally:
        meter.close()


def _requirement(wheel: Wheel) -> str:
    fragment = f"#sha256={wheel.sha256}" if wheel.sha256 else ""
    return f"{wheel.name} @ {wheel.url}{fragment}"


def _groups(wanted: list[Wheel], sizes: dict[Wheel, int | None]) -> Iterator[list[Wheel]]:
    """Yield wheels to fetch together: the small ones first, and the large ones each by itself."""
    group: list[Wheel] = []
    taken = 0
    for wheel in sorted(wanted, key=lambda wheel: sizes[wheel] or 0):
        size = sizes[wheel] or 0
        if group and (len(group) == TOGETHER or taken + size > TOGETHER_BYTES):
            yield group
            group, taken = [], 0
        group.append(wheel)
        taken += size
    if group:
        yield group


def _counter(meter: Meter) -> Any:
    """Return what counts the bytes that pip reports, each file's from 0 upwards."""
    last = 0

    def count(line: str) -> None:
        nonlocal last
        if told := re.fullmatch(r"Progress (\d+) of \d+", line):
            now = int(told[1])
            meter.add(now - last if now >= last else now)
            last = now

    return count


def _put_in_place(arrived: Path, place: Path, wheel: Wheel) -> None:
    if wheel.sha256 and sha256_of(arrived) != wheel.sha256:
        raise UserError(f"{wheel.file} arrived with another SHA-256 than the index tells: run the same line again")
    with open(arrived, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(arrived, place)


def _tell_result(folder: Path, target: Target, contents: dict[str, Any]) -> None:
    glibc, cuda, driver = contents["target"]["glibc"], contents["torch"]["cuda"], contents["torch"]["driver"]
    needs = [f"Python {target.minor}", *([f"glibc {glibc} or newer"] if glibc else [])]
    needs += [f"for its GPU NVIDIA driver {driver} or newer (torch is for CUDA {cuda})"] if driver else []
    if contents["torch"]["version"] and not cuda and not target.cuda and not target.platform.startswith("macosx"):
        log.warning("warning: this torch is built without CUDA: for a GPU, --target-cuda 130 --wheel-index URL")
    count, size = len(contents["wheels"]), in_bytes(contents["size"])
    print(f"{folder}: {count} wheels, {size}; the box needs {', '.join(needs)}")
    print("on the box: python run_online_setup.py --install-wheels")
