"""What every script needs, from the standard library alone: one error boundary, atomic files, going offline."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import ipaddress
import json
import logging
import os
import shutil
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger("whisper")

DONE, FAILED, BAD_INPUT, BAD_BUNDLE, INTERRUPTED = 0, 1, 2, 3, 75
OLDEST_PYTHON = (3, 11, 4)


class WhisperError(Exception):
    """A failure that has a name: its message is the whole story, told in one line."""

    exit_code = FAILED


class UserError(WhisperError):
    """The user's flags, files or environment are wrong; the message says which and what to do."""

    exit_code = BAD_INPUT


class BundleError(WhisperError):
    """The bundle is missing, unfinished or damaged."""

    exit_code = BAD_BUNDLE


class Interrupted(WhisperError):
    """Stopped by a signal; what was done is kept."""

    exit_code = INTERRUPTED


class OfflineError(WhisperError):
    """Something asked the network on the offline side."""


@contextlib.contextmanager
def error_boundary(debug: bool = False) -> Iterator[None]:
    """Turn what goes wrong inside into one line on standard error and an exit code; `debug` shows the traceback."""
    try:
        if sys.version_info < OLDEST_PYTHON:
            oldest = ".".join(map(str, OLDEST_PYTHON))
            raise UserError(f"this is Python {sys.version.split()[0]}, and {oldest} or newer is needed")
        yield
    except KeyboardInterrupt:
        _stop("interrupted", INTERRUPTED, debug)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except WhisperError as error:
        _stop(str(error), error.exit_code, debug)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in {"asr", "config", "utils", "demo"}:
            _stop(f"{error.name} is missing: this copy of the project is incomplete, copy it again", FAILED, debug)
        _stop(f"the Python package '{missing}' is missing: pip install -r requirements.txt", BAD_INPUT, debug)
    except Exception as error:
        # An error from a worker process carries its whole traceback; the last line is the error.
        lines = str(error).strip().splitlines() or ["no further message"]
        line = lines[-1] if "Traceback" in str(error) else lines[0]
        _stop(f"{type(error).__name__}: {line} (--debug shows where)", FAILED, debug)


def _stop(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def set_up_logging(debug: bool = False) -> None:
    """Send our messages to standard error, so that standard output carries results alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    log.propagate = False
    if not debug:
        # What libraries tell their own developers; transformers reads the variable at import.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|torch|huggingface_hub")


# Files


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all: beside its place, on the disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON that a person can read, atomically."""
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


@contextlib.contextmanager
def folder_made_whole(path: Path, durable: bool = True) -> Iterator[Path]:
    """Give a folder to fill beside `path`; it takes that place only when the block ends without an error.

    Args:
        durable: bring every file to the disk first; needless for what can be made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    beside = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    for file in beside.rglob("*") if durable else ():
        if file.is_file():
            _sync_file(file)
    replace_folder(beside, path)


def recover_folder(path: Path) -> None:
    """Put the old content back where a replacement was killed between its two renames."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        os.replace(old, path)


def replace_folder(new: Path, path: Path) -> None:
    """Put the folder `new` in the place of `path`, whose old content stands until then."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
    os.replace(new, path)
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    # Windows cannot open a folder; its rename is durable without it.
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Going offline

OFFLINE_SWITCHES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    # A proxy from the environment must not stand between the demo page and its own loopback check.
    "NO_PROXY": "localhost,127.0.0.1,::1",
    "no_proxy": "localhost,127.0.0.1,::1",
}
_guard_is_up = False
_own_addresses: set[str] = set()


def go_offline() -> None:
    """Set every library's offline switch, and refuse any look-up or connection beyond this machine from now on.

    Call it before the first heavy import, and again in every process that starts afresh. What is refused raises
    OfflineError with the call and the line that made it.
    """
    global _guard_is_up
    os.environ.update(OFFLINE_SWITCHES)
    if not _guard_is_up:
        sys.addaudithook(_refuse_network)
        for method in ("bind", "connect", "connect_ex", "sendmsg", "sendto"):
            setattr(socket.socket, method, _without_look_up(getattr(socket.socket, method), f"socket.{method}"))
        _guard_is_up = True


def _without_look_up(method: Callable[..., Any], event: str) -> Callable[..., Any]:
    """Guard a socket's method that would resolve a host's name before the audit hook hears of it."""

    @functools.wraps(method)
    def guarded(self: socket.socket, *args: Any) -> Any:
        address = args[-1] if args else None
        if isinstance(address, tuple) and address[0] and not _needs_no_look_up(address[0]):
            _refuse(event, f"{address[0]}:{address[1]}")
        return method(self, *args)

    return guarded


def _refuse_network(event: str, args: tuple[Any, ...]) -> None:
    if event in {"socket.connect", "socket.sendto", "socket.sendmsg"}:
        address = args[1]
        # Local sockets have a path for an address; sendmsg on a connected socket has none.
        if isinstance(address, tuple) and not _is_this_machine(address[0]):
            _refuse(event, f"{address[0]}:{address[1]}")
    elif event in {"socket.getaddrinfo", "socket.gethostbyname"}:
        if args[0] and not _needs_no_look_up(args[0]):
            _refuse(event, args[0])
    elif event == "socket.gethostbyaddr" and not _is_this_machine(args[0]):
        _refuse(event, args[0])
    elif event == "socket.getnameinfo" and not _is_this_machine(args[0][0]):
        _refuse(event, args[0][0])


def allow_own_address(address: str) -> None:
    """Let this process connect to an address of this machine on which it listens itself."""
    _own_addresses.add(address)


def _is_this_machine(host: str | bytes) -> bool:
    text = host.decode() if isinstance(host, bytes) else host
    if text in _own_addresses:
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    return text == "localhost"


def _needs_no_look_up(host: str | bytes) -> bool:
    text = host.decode() if isinstance(host, bytes) else host
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(text.partition("%")[0])
        return True
    return text == "localhost"


def _refuse(event: str, target: object) -> None:
    stack = traceback.extract_stack()
    frames = [frame for frame in stack if frame.filename != __file__ and Path(frame.filename).name != "socket.py"]
    caller = f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else "an unknown caller"
    raise OfflineError(f"offline: {event} to {target} was refused; called from {caller}")
