"""Resolution: which wheels the box needs, asked of pip, without fetching them.

pip looks for wheels of another platform, but judges "only on Windows" and the like by the machine that it runs on.
So it is asked for wheels alone (--no-deps), and who needs whom is followed here, with the box's own markers.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from asr.online.target import NEWEST_GLIBC, USUAL_GLIBC, Target
from utils import UserError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# What some target needs and requirements.txt does not name, because its machine of origin has no use for it.
TARGET_ONLY = {"colorama": "0.4.6"}
# With none of them pip would not tell that the network is at fault.
RETRIES = "3"
UNREACHABLE = ("connection broken", "Could not fetch URL", "confirming the ssl certificate", "ConnectionError",
               "ReadTimeoutError", "NameResolutionError")  # fmt: skip


@dataclass(frozen=True)
class Wheel:
    """A wheel on an index.

    Attributes:
        name: the package, in the spelling of PEP 503.
        version: with the local part, as 2.13.0+cu126.
        url: where it is.
        sha256: what the index says of it; empty where it says nothing.
        needs: its Requires-Dist.
    """

    name: str
    version: str
    url: str
    sha256: str
    needs: tuple[str, ...] = field(repr=False)

    @property
    def file(self) -> str:
        """Its file name."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])


class Pip:
    """A pip: this Python's own, or another that runs without being installed.

    Args:
        target: the box.
        place: pip's wheel, or the folder into which it was unpacked.
    """

    def __init__(self, target: Target, place: Path | None = None) -> None:
        own = ["-m", "pip"] if place is None else [str(place / "pip")]
        self.command = [sys.executable, *own, "--disable-pip-version-check", "--no-input"]
        self.target = target

    def run(self, *arguments: str, on_line: Callable[[str], None] = lambda line: None) -> tuple[int, list[str]]:
        """Run it, give every line of output to `on_line`, and return the exit code and all lines."""
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"}
        lines = []
        with subprocess.Popen(
            [*self.command, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, encoding="utf-8", errors="replace", env=environment,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    lines.append(line.rstrip())
                    on_line(lines[-1])
            except BaseException:
                process.terminate()
                raise
        return process.returncode, lines

    def find(self, requirements: Iterable[str], index: str | None = None) -> list[Wheel]:
        """Return the wheel of each requirement, and of nothing else.

        Raises:
            UserError: there is none for the box, or no index can be reached.
        """
        wanted = list(requirements)
        if not wanted:
            return []
        steps = (USUAL_GLIBC, NEWEST_GLIBC) if self.target.is_linux else (NEWEST_GLIBC,)
        lines: list[str] = []
        with tempfile.TemporaryDirectory() as folder:
            report, listed = Path(folder, "report.json"), Path(folder, "requirements.txt")
            listed.write_text("\n".join(wanted) + "\n", encoding="utf-8")
            for glibc in steps:
                code, lines = self.run(
                    "install", "--dry-run", "--ignore-installed", "--no-deps", "--use-feature=fast-deps",
                    "--retries", RETRIES, "--report", str(report), "-r", str(listed),
                    *self.target.pip_flags(glibc), *index_flags(index),
                )  # fmt: skip
                if code == 0:
                    found = json.loads(report.read_text(encoding="utf-8"))["install"]
                    return [_wheel(entry) for entry in found]
                if not _has_none(lines):
                    break
        raise UserError(why(lines, self.target))


def index_flags(index: str | None) -> list[str]:
    """Return pip's flags for one more index."""
    return ["--extra-index-url", index] if index else []


def resolve(
    pip: Pip, pins: dict[str, Requirement], index: str | None = None, before: Mapping[str, str] | None = None
) -> list[Wheel]:
    """Return every wheel that the box needs: the pinned ones, and what these need there.

    Args:
        pins: the requirements by name, as parse_pins gives them.
        index: one more index, asked for torch and for what no pin names: one that is made for torch holds old copies
            of other packages too.
        before: versions of an earlier time, to which packages without a pin are held if they still serve.

    Raises:
        UserError: a wheel is not there, or pins contradict each other on the box.
    """
    apart = {"torch"} if index else set()
    found = {wheel.name: wheel for wheel in pip.find(str(pin) for name, pin in pins.items() if name not in apart)}
    found |= {wheel.name: wheel for wheel in pip.find([str(pins[name]) for name in apart & pins.keys()], index)}
    while True:
        needed = _needed(found, pins, pip.target)
        missing = [name for name in needed if name not in found]
        if not missing:
            break
        held = {**TARGET_ONLY, **(before or {})}
        wanted = [_constrained(name, [need for _, need in needed[name]], held.get(name)) for name in missing]
        found |= {wheel.name: wheel for wheel in pip.find(wanted, index)}
    clashes = [
        f"{by} needs {need}, and {name} is {found[name].version}"
        for name, needs in needed.items()
        for by, need in needs
        if not need.specifier.contains(found[name].version, prereleases=True)
    ]
    if clashes:
        raise UserError(f"the pins do not fit together for {pip.target.told}: {clashes[0]}")
    return sorted(found.values(), key=lambda wheel: wheel.name)


def parse_pins(requirements: Path, target: Target) -> dict[str, Requirement]:
    """Return the requirements of a file that hold on the target, by name; torch in the build for its CUDA.

    Raises:
        UserError: the file is missing, or a line is no requirement.
    """
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.utils import canonicalize_name

    if not requirements.is_file():
        raise UserError(f"{requirements} is missing: this copy of the project is incomplete, copy it again")
    pins: dict[str, Requirement] = {}
    for number, line in enumerate(requirements.read_text(encoding="utf-8").splitlines(), start=1):
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if not text:
            continue
        try:
            pin = Requirement(text)
        except InvalidRequirement:
            raise UserError(f"{requirements}, line {number}: {text} is no requirement such as name==1.0") from None
        if pin.marker is None or pin.marker.evaluate(target.markers()):
            pin.marker = None
            pins[canonicalize_name(pin.name)] = pin
    if target.cuda and "torch" in pins:
        version = str(pins["torch"].specifier).removeprefix("==").partition("+")[0]
        pins["torch"].specifier = SpecifierSet(f"=={version}+{target.cuda}")
    return pins


def why(lines: list[str], target: Target) -> str:
    """Turn what pip said when it failed into one sentence that says what to do."""
    output = "\n".join(lines)
    nothing = re.search(r"No matching distribution found for ([^\s;]+)", output)
    package = nothing[1] if nothing else ""
    if any(sign in output for sign in UNREACHABLE):
        asked = f" (asked for {package})" if package else ""
        return f"the package index cannot be reached{asked}: look at network and proxy, then run the same line again"
    if "No space left" in output:
        return "the disk is full: make room, then run the same line again; the wheels that are there stay"
    if package.startswith("torch==") and "+" in package:
        return (
            f"no index has a wheel of {package} for {target.told}: "
            "name the one that has it with --wheel-index URL, or take another --target-cuda"
        )
    if package:
        listed = re.search(r"\(from versions: ([^)]*)\)", output)
        others = listed[1].split(", ") if listed and listed[1] != "none" else []
        known = f"it has them of {', '.join(others[-3:])}" if others else "it has none of any version"
        return (
            f"the index has no wheel of {package} for {target.told} ({known}): "
            "choose another --target-python or --target-platform"
        )
    if "DO NOT MATCH THE HASHES" in output:
        named = re.search(r"DO NOT MATCH THE HASHES.*?\n\s+(\S+)", output, flags=re.DOTALL)
        return (
            f"the wheel of {named[1] if named else 'a package'} arrived with another SHA-256 than the index tells: "
            "run the same line again; if it stays so, a proxy or mirror alters it"
        )
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if "No module named pip" in output:
        return f"{sys.executable} has no pip: make a virtual environment that has one, and run the same line with it"
    return f"pip failed: {(errors or lines or ['it said nothing'])[0].strip()}"


def _has_none(lines: list[str]) -> bool:
    output = "\n".join(lines)
    return "No matching distribution" in output and not any(sign in output for sign in UNREACHABLE)


def _wheel(entry: dict[str, Any]) -> Wheel:
    from packaging.utils import canonicalize_name

    metadata, download = entry["metadata"], entry["download_info"]
    sha256 = download.get("archive_info", {}).get("hashes", {}).get("sha256", "")
    needs = tuple(metadata.get("requires_dist") or ())
    return Wheel(canonicalize_name(metadata["name"]), metadata["version"], download["url"], sha256, needs)


def _needed(
    found: dict[str, Wheel], pins: dict[str, Requirement], target: Target
) -> dict[str, list[tuple[str, Requirement]]]:
    """Return who needs what on the box: under each package's name the needing ones and their requirements."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    needed: dict[str, list[tuple[str, Requirement]]] = {}
    followed: set[tuple[str, str]] = set()
    waiting = [(name, extra) for name in found for extra in ("", *(pins[name].extras if name in pins else ()))]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in followed:
            continue
        followed.add((name, extra))
        for need in map(Requirement, found[name].needs):
            if need.marker is not None and not need.marker.evaluate(target.markers(extra)):
                continue
            other = canonicalize_name(need.name)
            needed.setdefault(other, []).append((name, need))
            if other in found:
                waiting += [(other, more) for more in need.extras]
    return needed


def _constrained(name: str, needs: list[Requirement], held: str | None) -> str:
    """Put together what several packages ask of one, and the version that it is held to if that will do."""
    from packaging.specifiers import SpecifierSet

    specifier = SpecifierSet()
    for need in needs:
        specifier &= need.specifier
    return f"{name}=={held}" if held and specifier.contains(held) else f"{name}{specifier}"
