"""Measuring: what a command costs, in wall-clock time, memory and use of the GPU.

As a command, `python -m benchmarks.measuring REPORT.json SCRIPT [flags]` runs a script and writes what torch reserved
of the GPU at most, which only the process itself knows.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = ROOT / "demo" / "tiny-whisper-ko"
DEMO_CORPUS = ROOT / "demo" / "cv-corpus-demo" / "ko"
PERIOD_S = 0.1
# Counting the pages of a large process takes a while, in which it is slowed down: no more of the time than this.
LARGEST_SHARE = 0.04


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes:
        seconds: wall-clock time from its start to its end.
        memory: bytes that it and its children held at a time, at most (PSS: what is shared counts once).
        gpu_busy: mean use of the GPU in per cent, from the first to the last moment at which it was busy; None without
            one.
    """

    seconds: float
    memory: int
    gpu_busy: float | None = None


def measure(command: list[str], gpu: bool = False) -> Usage:
    """Run a command to its end, and return what it took; with `gpu`, also how busy that was.

    Raises:
        SystemExit: the command failed; its errors are shown.
    """
    with tempfile.TemporaryDirectory() as cache:
        began = time.monotonic()
        # A cache of its own, so that nothing of an earlier run helps.
        running = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "HF_HOME": cache}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        watch = _Watch(running, gpu)
        threads = [threading.Thread(target=work) for work in (watch.memory, *([watch.gpu] if gpu else []))]
        for thread in threads:
            thread.start()
        _, errors = running.communicate()
        seconds = time.monotonic() - began
        for thread in threads:
            thread.join()
        if running.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode()}")
        return Usage(seconds, watch.peak, mean_while_busy(watch.busy) if gpu else None)


@dataclass
class _Watch:
    """Looks at a running command again and again."""

    running: subprocess.Popen
    wanted: bool
    peak: int = 0
    busy: list[float] = field(default_factory=list)

    def memory(self) -> None:
        """Keep the most memory that the command and its children hold."""
        import psutil

        process = psutil.Process(self.running.pid)
        while self.running.poll() is None:
            began = time.monotonic()
            self.peak = max(self.peak, sum(_held(process)))
            self._rest((time.monotonic() - began) / LARGEST_SHARE)

    def gpu(self) -> None:
        """Keep how busy the first GPU is."""
        while self.running.poll() is None:
            answer = ask_gpu("utilization.gpu")
            if answer:
                self.busy.append(float(answer))
            self._rest(PERIOD_S)

    def _rest(self, seconds: float) -> None:
        """Wait so long, at least the shortest period, or until the command ends."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.running.wait(max(PERIOD_S, seconds))


def _held(process) -> Iterator[int]:
    import psutil

    try:
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return
    for one in family:
        try:
            yield one.memory_full_info().pss
        except (psutil.Error, AttributeError):
            continue


def gpu_cells(usage: Usage, gpu_memory: int | None) -> list[str]:
    """Return the memory of the GPU that a script reserved, and how busy it was, as cells of a table."""
    memory = "" if gpu_memory is None else f"{gpu_memory / 1e6:,.0f} MB"
    return [memory, "" if usage.gpu_busy is None else f"{usage.gpu_busy:.0f} %"]


def call(command: list[str]) -> None:
    """Run a command that is not measured."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")


def tell(message: str) -> None:
    """Show how far it is; the tables alone go to standard output."""
    print(message, file=sys.stderr, flush=True)


def mean_while_busy(shares: list[float]) -> float | None:
    """Return the mean from the first share above 0 to the last one; None where none is."""
    busy = [number for number, share in enumerate(shares) if share > 0]
    if not busy:
        return None
    between = shares[busy[0] : busy[-1] + 1]
    return sum(between) / len(between)


def ask_gpu(what: str) -> str:
    """Return what nvidia-smi says of the first GPU, such as its `name`; "" where there is none."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "--id=0"]
    answer = subprocess.run(command, capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else ""


def machine(device: str = "cpu") -> str:
    """Return machine, Python and date in a line."""
    name = f"{ask_gpu('name')}, " if device == "cuda" else ""
    return (
        f"{name}{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {time.strftime('%F')}"
    )


def read_json(file: Path) -> Any:
    """Return what a file holds."""
    return json.loads(file.read_text(encoding="utf-8"))


def size_of(folder: Path) -> int:
    """Return the bytes of a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def reporting(report: Path, script: Path, *flags: object) -> list[str]:
    """Return the command that runs a script and writes its use of the GPU to `report`."""
    return [sys.executable, "-m", "benchmarks.measuring", str(report), str(script), *map(str, flags)]


def measure_script(script: Path, flags: Sequence[object], work: Path, gpu: bool) -> tuple[Usage, int | None]:
    """Run a script and return what it took, and the bytes of the GPU that torch reserved at most."""
    report = work / "gpu.json"
    tell(f"{script.name} {' '.join(map(str, flags))}")
    usage = measure(reporting(report, script, *flags), gpu)
    return usage, read_json(report)["gpu_memory"]


def run_and_report(report: Path, script: str, flags: list[str]) -> None:
    """Run a script as if it had been called; then write `gpu_memory`, in bytes, or null without a GPU."""
    sys.argv = [script, *flags]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        # The script alone decides whether, and with which settings, torch is imported.
        torch = sys.modules.get("torch")
        used = torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
        report.write_text(json.dumps({"gpu_memory": torch.cuda.max_memory_reserved() if torch and used else None}))


if __name__ == "__main__":
    run_and_report(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
