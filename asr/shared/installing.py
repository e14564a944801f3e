"""Installing: the wheelhouse onto a box without a network, looked over first, with the standard library alone."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asr.shared.checksums import compare_contents
from asr.shared.driver import OLDEST_CAPABILITY, OLDEST_DRIVER, driver_cuda, driver_trouble, driver_version, gpus
from asr.shared.meter import Meter, in_bytes
from utils import BundleError, UserError, log

FORMAT = 1
WHEELS, LIST, REQUIREMENTS = "wheels", "wheels.json", "requirements.txt"
AGAIN = "copy bundle/wheels again, or run run_online_setup.py --wheels again"
OTHER_TORCH = "run_online_setup.py --wheels --target-cuda 126 --wheel-index URL brings another torch"
# pip keeps its books beside the packages, and Python compiles them.
ROOM = 1.15


def install(bundle_dir: Path) -> None:
    """Install bundle/wheels into this Python, if it and the machine can take them.

    Everything that stands in the way is told, a line each, before anything is installed. The network is not asked.

    Raises:
        UserError: there are no wheels, they are for another machine, or pip could not install them.
        BundleError: wheels are missing or damaged.
    """
    folder = bundle_dir / WHEELS
    contents = read_list(folder)
    damage = [f"{folder / trouble.name} {trouble.told}" for trouble in _damage(folder, contents)]
    troubles = [*machine_troubles(contents), *damage]
    if troubles:
        kind = BundleError if damage else UserError
        remedy = f"; {AGAIN}" if damage else ""
        if len(troubles) == 1:
            raise kind(f"nothing was installed: {troubles[0]}{remedy}")
        for trouble in troubles:
            log.error("error: %s", trouble)
        raise kind(f"nothing was installed: {len(troubles)} things stand in the way, told above{remedy}")
    for warning in _warnings(contents):
        log.warning("warning: %s", warning)
    if _wrong_versions(contents):
        _pip_install(folder, contents)
    _check_installed(folder, contents)
    print(f"installed: {len(_packages(contents))} packages, in the versions that the bundle brought")


def read_list(folder: Path) -> dict[str, Any]:
    """Return what wheels.json says: target, torch, pip's own wheel (pip), and name, version, file, size and sha256 of
    every wheel (wheels).

    Raises:
        UserError: there is no wheelhouse.
        BundleError: it is unfinished, or its list is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; run_online_setup.py --wheels makes it on the online side")
    file = folder / LIST
    try:
        contents = json.loads(file.read_text(encoding="utf-8"))
        if contents["format"] != FORMAT:
            raise BundleError(f"{file} has format {contents['format']}, this code reads {FORMAT}: copy the code again")
        for group, keys in (("target", ("python", "platform", "glibc", "macos")), ("torch", ("cuda", "driver"))):
            for key in keys:
                contents[group][key]
        named = [contents["requirements"], *contents["wheels"]]
        if any(Path(entry["file"]).name != entry["file"] for entry in named):
            raise BundleError(f"{file} names files outside its folder; {AGAIN}")
    except FileNotFoundError:
        raise BundleError(f"{file} is missing: collecting did not finish, or the copy did not; {AGAIN}") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BundleError(f"{file} cannot be read ({type(error).__name__}); {AGAIN}") from None
    return contents


def this_platform() -> str:
    """Return the system of this machine, as linux_x86_64, linux_aarch64, win_amd64 or macosx_arm64."""
    system, _, rest = sysconfig.get_platform().partition("-")
    # Python for macOS may be built for both of its processors at once.
    return f"{system}_{rest.rpartition('-')[2].replace('universal2', platform.machine())}"


def machine_troubles(contents: dict[str, Any]) -> list[str]:
    """Say why this Python and this machine cannot take the wheels, a sentence each, or nothing."""
    target, cuda = contents["target"], contents["torch"]["cuda"]
    return [
        *_python_troubles(target),
        *_system_troubles(target),
        *(_gpu_troubles(cuda) if cuda else ()),
        *_room_troubles(contents),
    ]


def _python_troubles(target: dict[str, Any]) -> Iterator[str]:
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    if sys.implementation.name != "cpython":
        yield f"this is {platform.python_implementation()}, and the wheels are for CPython {target['python']}"
    elif ours != target["python"]:
        yield (
            f"this is Python {ours}, and the wheels are for {target['python']}: "
            f"use Python {target['python']} here, or collect again with --target-python {ours}"
        )
    elif sysconfig.get_config_var("Py_GIL_DISABLED"):
        yield f"this is the free-threaded build of Python {ours}, and the wheels are for the usual one"
    if not _in_environment() and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists():
        yield (
            "this Python belongs to the system, which keeps pip out: make an environment of your own "
            f"({shlex.join([Path(sys.executable).name, '-m', 'venv', '--without-pip', 'venv'])}) and use its python"
        )


def _system_troubles(target: dict[str, Any]) -> Iterator[str]:
    ours, theirs = this_platform(), target["platform"]
    if ours != theirs:
        yield f"this is {ours}, and the wheels are for {theirs}: collect again with --target-platform {ours}"
        return
    if target["glibc"]:
        library, version = platform.libc_ver()
        if library != "glibc":
            yield f"this Linux has no glibc ({library or 'musl?'}), and the wheels need {target['glibc']} or newer"
        elif _numbers(version) < _numbers(target["glibc"]):
            yield (
                f"glibc here is {version}, and the wheels need {target['glibc']} or newer: "
                "a newer Linux is needed, or older pins in requirements.txt"
            )
    if target["macos"] and _numbers(platform.mac_ver()[0]) < _numbers(target["macos"]):
        yield f"this is macOS {platform.mac_ver()[0]}, and the wheels need {target['macos']} or newer"


def _gpu_troubles(cuda: str) -> Iterator[str]:
    major = int(cuda.partition(".")[0])
    driver, served = driver_version(), driver_cuda()
    trouble = driver_trouble(driver, cuda)
    if driver is None and served and int(served.partition(".")[0]) < major:
        needed = OLDEST_DRIVER.get(major)
        trouble = f"the NVIDIA driver serves CUDA {served}, and torch's CUDA {cuda} needs driver {needed} or newer"
    if trouble:
        yield f"{trouble}: install a newer driver, or {OTHER_TORCH}"
    found, oldest = gpus(), OLDEST_CAPABILITY.get(major)
    if found and oldest and all(capability < oldest for _, capability in found):
        name, capability = found[0]
        yield (
            f"{name} has compute capability {capability[0]}.{capability[1]}, and torch's CUDA {cuda} begins at "
            f"{oldest[0]}.{oldest[1]}: {OTHER_TORCH}"
        )


def _room_troubles(contents: dict[str, Any]) -> Iterator[str]:
    place = _existing(Path(sysconfig.get_path("purelib")))
    needed = 0 if _wrong_versions(contents) == [] else int(contents["unpacked"] * ROOM)
    free = shutil.disk_usage(place).free
    if free < needed:
        yield f"{place} has {in_bytes(free)} free, and the packages need {in_bytes(needed)}: make room"
    if _in_environment() and not os.access(place, os.W_OK):
        yield f"{place} cannot be written to: make an environment of your own ({sys.executable} -m venv venv)"


def _warnings(contents: dict[str, Any]) -> Iterator[str]:
    if not _in_environment():
        yield (
            "this is no virtual environment: the packages go among those of "
            f"{sys.executable} (python -m venv venv makes one)"
        )
    if contents["torch"]["cuda"] and driver_version() is None and driver_cuda() is None:
        yield "there is no NVIDIA driver here: training will run on the CPU"


def _in_environment() -> bool:
    return sys.prefix != sys.base_prefix or bool(os.environ.get("CONDA_PREFIX"))


def _damage(folder: Path, contents: dict[str, Any]) -> list[Any]:
    entries = [contents["requirements"], *contents["wheels"]]
    return compare_contents(folder, {entry["file"]: entry for entry in entries}, "checking the wheels")


def _packages(contents: dict[str, Any]) -> dict[str, str]:
    """Return the version of every package to install: pip itself only installs them."""
    return {wheel["name"]: wheel["version"] for wheel in contents["wheels"] if wheel["file"] != contents["pip"]}


# pip


def _pip_install(folder: Path, contents: dict[str, Any]) -> None:
    """Run the pip that the bundle brought, so that the age or absence of the box's own does not matter."""
    shown = ["pip", "install", "--no-index", "--find-links", str(folder), "-r", str(folder / REQUIREMENTS)]
    log.info("%s -m %s", Path(sys.executable).name, shlex.join(shown))
    count, unpacked = len(_packages(contents)), contents["unpacked"]
    log.info("installing %d packages, %s; this takes minutes", count, in_bytes(unpacked))
    with tempfile.TemporaryFile() as output:
        command = [*_pip(folder, contents), "install", "--no-cache-dir", "--progress-bar", "off", *shown[2:]]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment())
        try:
            _watch(process, unpacked)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        output.seek(0)
        lines = output.read().decode("utf-8", "replace").splitlines()
    for line in lines:
        log.debug("%s", line)
    if process.returncode:
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        said = (errors or lines or ["it said nothing"])[0]
        raise UserError(f"pip could not install the wheels: {said.strip()} (--debug shows all that it said)")


def _watch(process: subprocess.Popen[bytes], unpacked: int) -> None:
    """Tell how much of the room is taken until pip has ended: pip itself says nothing while it unpacks."""
    place = _existing(Path(sysconfig.get_path("purelib")))
    before = shutil.disk_usage(place).used
    meter = Meter("installing", unpacked)
    while process.poll() is None:
        used = shutil.disk_usage(place).used - before
        meter.add(max(0, min(used, unpacked) - meter.done))
        time.sleep(0.2)
    meter.close()


def _check_installed(folder: Path, contents: dict[str, Any]) -> None:
    wrong = _wrong_versions(contents)
    if wrong:
        raise UserError(f"installed, but not as it should be: {'; '.join(wrong)}; use a new virtual environment")
    command = [*_pip(folder, contents), "check"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace",
                          env=_environment(), check=False)  # fmt: skip
    if done.returncode:
        ours = {name.lower() for name in _packages(contents)}
        lines = done.stdout.strip().splitlines() or ["pip check failed"]
        bad = [line for line in lines if _canonical(line.split(" ")[0]) in ours]
        for line in lines:
            log.warning("warning: pip check: %s", line)
        if bad:
            raise UserError(f"installed, but not whole: {bad[0]}; use a new virtual environment")


def _wrong_versions(contents: dict[str, Any]) -> list[str]:
    """Say which packages a new process of this Python sees in another version, or not at all."""
    code = "import importlib.metadata as m, json; print(json.dumps([[d.name, d.version] for d in m.distributions()]))"
    # Nothing in the working folder counts; what comes first on the path wins, as in an import.
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    seen: dict[str, str] = {}
    for name, version in json.loads(done.stdout):
        if name:
            seen.setdefault(_canonical(name), version)
    wanted = {_canonical(name): version for name, version in _packages(contents).items()}
    return [
        f"{name} is {seen.get(name, 'missing')} instead of {version}"
        for name, version in wanted.items()
        if seen.get(name) != version
    ]


def _pip(folder: Path, contents: dict[str, Any]) -> list[str]:
    # Isolated from what pip's configuration and variables say of indexes: there is none to ask.
    return [sys.executable, str(folder / contents["pip"] / "pip"), "--isolated", "--disable-pip-version-check"]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"}


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
