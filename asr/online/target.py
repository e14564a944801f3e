"""The target: the box that wheels are collected for, as pip and the wheels' metadata ask about it."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass

from asr.shared.installing import this_platform
from config import Wheels
from utils import OLDEST_PYTHON, UserError

# What environment markers (PEP 508) call each system: sys_platform, platform_system, os_name, platform_machine.
SYSTEMS = {
    "linux_x86_64": ("linux", "Linux", "posix", "x86_64"),
    "linux_aarch64": ("linux", "Linux", "posix", "aarch64"),
    "win_amd64": ("win32", "Windows", "nt", "AMD64"),
    "macosx_arm64": ("darwin", "Darwin", "posix", "arm64"),
}
# pip takes a wheel only if a tag is named; wheels for an older glibc go first. 2.28 is the glibc of RHEL 8, on which
# many boxes still stand: only what has no wheel for it is taken for a newer one.
OLDEST_GLIBC, USUAL_GLIBC, NEWEST_GLIBC = 5, 28, 40
MACOS = ("14_0", "15_0", "26_0")
# The micro version that is assumed where the flag names none: some packages refuse the first few of 3.11.
LIKELY_MICRO = 9


@dataclass(frozen=True)
class Target:
    """The box.

    Attributes:
        python: its Python, as 3.11.9.
        platform: its system, one of SYSTEMS.
        cuda: local version of the torch to take, as cpu or cu126; empty for the one that the index has.
    """

    python: str
    platform: str
    cuda: str

    @property
    def minor(self) -> str:
        """Its Python as wheels know it, as 3.11."""
        return ".".join(self.python.split(".")[:2])

    @property
    def is_linux(self) -> bool:
        """Whether its wheels depend on a glibc."""
        return self.platform.startswith("linux_")

    @property
    def told(self) -> str:
        """The target in words."""
        return f"Python {self.minor} on {self.platform}"

    def pip_flags(self, glibc: int = NEWEST_GLIBC) -> list[str]:
        """Return the flags that make pip look for wheels for the box, up to glibc 2.`glibc`."""
        tags = [flag for tag in self._tags(glibc) for flag in ("--platform", tag)]
        return ["--only-binary=:all:", "--implementation", "cp", "--python-version", self.python, *tags]

    def markers(self, extra: str = "") -> dict[str, str]:
        """Return the values of environment markers on the box: pip itself knows only those of this machine."""
        sys_platform, system, os_name, machine = SYSTEMS[self.platform]
        return {
            "implementation_name": "cpython",
            "implementation_version": self.python,
            "platform_python_implementation": "CPython",
            "python_version": self.minor,
            "python_full_version": self.python,
            "sys_platform": sys_platform,
            "platform_system": system,
            "os_name": os_name,
            "platform_machine": machine,
            "platform_release": "",
            "platform_version": "",
            "extra": extra,
        }

    def _tags(self, glibc: int) -> list[str]:
        system, _, machine = self.platform.partition("_")
        if system == "linux":
            old = {"x86_64": {5: "1", 12: "2010", 17: "2014"}, "aarch64": {17: "2014"}}[machine]
            tags = []
            for minor in range(OLDEST_GLIBC, glibc + 1):
                tags += [f"manylinux{old[minor]}_{machine}"] if minor in old else []
                tags.append(f"manylinux_2_{minor}_{machine}")
            return [*tags, self.platform]
        return [f"macosx_{version}_{machine}" for version in MACOS] if system == "macosx" else [self.platform]


def target_of(wheels: Wheels) -> Target:
    """Return the target that the flags describe.

    Raises:
        UserError: a Python, a system or a CUDA of which there are no wheels.
    """
    system = wheels.target_platform or this_platform()
    if system not in SYSTEMS:
        raise UserError(f"--target-platform {system}: it must be one of {' '.join(SYSTEMS)}")
    return Target(_python(wheels.target_python), system, _cuda(wheels.target_cuda))


def _python(named: str | None) -> str:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    wanted = named or here
    if not re.fullmatch(r"3\.\d+(\.\d+)?", wanted):
        raise UserError(f"--target-python {wanted}: it must be a version such as 3.11 or 3.12")
    if wanted.count(".") == 1:
        wanted = platform.python_version() if wanted == here else f"{wanted}.{LIKELY_MICRO}"
    wanted = re.sub(r"[^0-9.].*", "", wanted)
    if tuple(map(int, wanted.split("."))) < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        raise UserError(f"--target-python {named or here}: {oldest} or newer is needed")
    return wanted


def _cuda(named: str) -> str:
    """Return the local version of a torch: 126, 12.6 and cu126 are one."""
    name = named.lower()
    if name == "default":
        return ""
    digits = name.removeprefix("cu").replace(".", "")
    if digits.isdigit():
        # 13 alone is the first of its generation.
        return f"cu{digits}" if len(digits) > 2 else f"cu{digits}0"
    if not re.fullmatch(r"[a-z0-9]+(\.[a-z0-9]+)*", name):
        raise UserError(f"--target-cuda {named}: it must be default, cpu, or a CUDA version such as 126 or 130")
    return name
