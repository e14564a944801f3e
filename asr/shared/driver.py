"""NVIDIA's driver, seen with the standard library alone: which version it is, and which CUDA it can serve."""

from __future__ import annotations

import contextlib
import ctypes
import re
import subprocess
import sys
from pathlib import Path

# The oldest driver of each CUDA generation (NVIDIA, CUDA Compatibility, table 1).
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
# The oldest GPU of a generation, by compute capability: CUDA 13 has left Maxwell, Pascal and Volta behind.
OLDEST_CAPABILITY = {13: (7, 5)}
KERNEL_MODULE = Path("/proc/driver/nvidia/version")


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, as 580.65.06, or None where there is none."""
    found = re.search(r"\d+\.\d+(\.\d+)?", "\n".join(_ask("driver_version")))
    if found:
        return found[0]
    with contextlib.suppress(OSError):
        found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", KERNEL_MODULE.read_text(encoding="utf-8", errors="replace"))
    return found[0] if found else None


def driver_cuda() -> str | None:
    """Return the newest CUDA version that the driver's own library serves, as 12.4, or None where there is none."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        number = ctypes.c_int(0)
        if library.cuDriverGetVersion(ctypes.byref(number)) or not number.value:
            return None
    except (OSError, AttributeError):
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def gpus() -> list[tuple[str, tuple[int, int]]]:
    """Return name and compute capability of each GPU; nothing where nvidia-smi tells none."""
    matches = (re.fullmatch(r"\s*(.*?)\s*,\s*(\d+)\.(\d+)\s*", line) for line in _ask("name,compute_cap"))
    return [(match[1], (int(match[2]), int(match[3]))) for match in matches if match]


def driver_trouble(driver: str | None, cuda: str) -> str:
    """Say what is wrong with a driver for torch's CUDA version, or nothing."""
    oldest = OLDEST_DRIVER.get(int(cuda.partition(".")[0]))
    if driver is None or oldest is None or int(driver.partition(".")[0]) >= oldest:
        return ""
    return f"driver {driver} is too old for torch's CUDA {cuda}, which needs {oldest} or newer"


def _ask(fields: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
