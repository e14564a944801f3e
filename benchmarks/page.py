"""python -m benchmarks.page [--clients 32] [--seconds 60] [flags of inference.py behind --]

Many visitors at once: clients on loopback that upload a clip of the demo, have it transcribed and begin again, each
without a pause, with gradio_client, on the same machine as the page, whose cores they share. Counts answers and what is
lost, and takes the memory of the page every 10 s; what uploads leave behind is counted at the end. Without flags it is
the embedded Whisper alone.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from benchmarks.measuring import DEMO_CORPUS, DEMO_MODEL, ROOT, machine, tell

LOOK_EVERY_S = 10.0


@dataclass
class Load:
    """What visitors met.

    Attributes:
        waits: seconds of each answer.
        lost: what was said instead of an answer.
        memory: (seconds, answers so far, bytes of the page).
        left: files of uploads that lie there at the end.
    """

    waits: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    memory: list[tuple[float, int, int]] = field(default_factory=list)
    left: int = 0


def main() -> None:
    """Serve the page, send the clients, print the table."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder, served(options.flags, Path(folder)) as (address, pid):
        load = visit(address, pid, options.clients, options.seconds)
        load.left = len(uploads_in(Path(folder)))
    table = as_table(load, options.clients, options.seconds)
    print(table)
    if options.out:
        options.out.write_text(table, encoding="utf-8")
    if load.lost or load.left:
        raise SystemExit(f"{len(load.lost)} answers were lost ({load.lost[:1]}), {load.left} uploads are left")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="also write the table to this file")
    parser.add_argument("flags", nargs="*", default=["--model", str(DEMO_MODEL)], help="of inference.py, behind --")
    return parser.parse_args()


@contextmanager
def served(flags: list[str], folder: Path) -> Iterator[tuple[str, int]]:
    """Give the address and the process of a page whose temporary files go to `folder`."""
    command = [sys.executable, str(ROOT / "inference.py"), *flags, "--port", "0"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, encoding="utf-8", env={**os.environ, "TMPDIR": str(folder)}
    ) as page:
        assert page.stderr is not None
        told = []
        for line in page.stderr:
            told.append(line)
            if found := re.search(r"https?://[\d.]+:\d+/", line):
                break
        else:
            raise SystemExit("".join(told))
        try:
            yield found[0], page.pid
        finally:
            page.send_signal(signal.SIGINT)


def visit(address: str, pid: int, clients: int, seconds: float) -> Load:
    """Let so many clients transcribe clips for so long, and wait for their last answers."""
    import psutil
    from gradio_client import Client

    clips = sorted((DEMO_CORPUS / "clips").glob("*test_*.mp3"))[:clients]
    load, page = Load(), psutil.Process(pid)
    tell(f"{clients} clients")
    opened = [Client(address, verbose=False) for _ in range(clients)]
    began = time.monotonic()
    threads = [
        threading.Thread(target=_ask, args=(client, clips[at % len(clips)], began + seconds, load))
        for at, client in enumerate(opened)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        load.memory.append((time.monotonic() - began, len(load.waits), page.memory_info().rss))
        for thread in threads:
            thread.join(max(0.0, load.memory[-1][0] + LOOK_EVERY_S - (time.monotonic() - began)))
    load.memory.append((time.monotonic() - began, len(load.waits), page.memory_info().rss))
    return load


def _ask(client, clip: Path, end: float, load: Load) -> None:
    from gradio_client import handle_file

    while (began := time.monotonic()) < end:
        try:
            answer = client.predict(handle_file(clip), api_name="/transcribe")
        except Exception as error:
            load.lost.append(f"{type(error).__name__}: {error}")
            continue
        if isinstance(answer, str) and answer.strip():
            load.waits.append(time.monotonic() - began)
        else:
            load.lost.append(f"no text of {clip.name}")


def uploads_in(folder: Path) -> list[Path]:
    """Return the files of uploads below a folder; Gradio names theirs by their content."""
    return [file for file in folder.rglob("*") if file.is_file() and re.fullmatch("[0-9a-f]{64}", file.parent.name)]


def as_table(load: Load, clients: int, seconds: float) -> str:
    """Return a Markdown table of the memory, and the rest in a line."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "gradio"))
    slow = sorted(load.waits)[int(0.95 * len(load.waits))] if load.waits else 0.0
    middle = statistics.median(load.waits) if load.waits else 0.0
    lines = [
        f"{clients} clients for {seconds:.0f} s: {len(load.waits)} answers, {len(load.lost)} lost, "
        f"{load.left} uploads left; an answer after {middle:.1f} s (median), {slow:.1f} s (95 %)",
        f"{machine()}, {versions}",
        "",
        "| seconds | answers | memory of the page |",
        "|---|---|---|",
        *(f"| {at:.0f} | {done:,} | {held / 1e6:,.0f} MB |" for at, done, held in load.memory),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
