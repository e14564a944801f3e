"""Files that are whole or not there, errors that take one line, and a process that cannot reach the network."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import utils
from tests.conftest import ROOT
from utils import (
    BundleError,
    OfflineError,
    UserError,
    WhisperError,
    error_boundary,
    folder_made_whole,
    write_atomically,
)


def python(code: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a Python of its own, from a file called probe.py that finds our modules."""
    probe = folder / "probe.py"
    probe.write_text(textwrap.dedent(code), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(probe), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=False, timeout=60)


# Files


def test_written_content_and_folders(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "file.txt"
    write_atomically(file, "한글\n")
    assert file.read_bytes() == "한글\n".encode()
    write_atomically(file, b"\x00\xff")
    assert file.read_bytes() == b"\x00\xff"
    assert list(file.parent.iterdir()) == [file]


def test_json_is_written_for_people(tmp_path: Path) -> None:
    utils.write_json(tmp_path / "a.json", {"이름": Path("b"), "n": 1.5})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{\n  "이름": "b",\n  "n": 1.5\n}\n'


def test_a_write_that_fails_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(file, "half of it, then \ud800")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_place_that_cannot_be_replaced_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "file.txt").mkdir()
    with pytest.raises(OSError, match=r"file\.txt"):
        write_atomically(tmp_path / "file.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_a_full_disk_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    """A limit on the file's size stands for the full disk: writing stops in the middle."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "file.bin").write_bytes(b"old")
    code = """
    import resource, sys
    from pathlib import Path
    from utils import write_atomically
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        write_atomically(Path(sys.argv[1]), b"x" * 100_000)
    except OSError as error:
        print("refused:", error.strerror)
    """
    assert python(code, place / "file.bin", folder=tmp_path).stdout.startswith("refused:")
    assert (place / "file.bin").read_bytes() == b"old"
    assert [path.name for path in place.iterdir()] == ["file.bin"]


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "parent" / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "old.txt").write_text("old")
    return folder


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_the_old_folder_and_nothing_else(old_folder: Path, error: type) -> None:
    def fill() -> None:
        with folder_made_whole(old_folder) as beside:
            (beside / "new.txt").write_text("new")
            raise error

    with pytest.raises(error):
        fill()
    assert names(old_folder.parent) == {"data", "data/sub", "data/sub/old.txt"}
    assert (old_folder / "sub" / "old.txt").read_text() == "old"


def test_a_block_that_ends_well_puts_the_new_folder_in_place_of_the_old(old_folder: Path) -> None:
    with folder_made_whole(old_folder) as beside:
        (beside / "sub").mkdir()
        (beside / "sub" / "new.txt").write_text("new")
        assert names(old_folder) == {"sub", "sub/old.txt"}, "the old folder stands until the block ends"
    assert names(old_folder.parent) == {"data", "data/sub", "data/sub/new.txt"}


def test_a_folder_is_made_where_none_was(tmp_path: Path) -> None:
    with folder_made_whole(tmp_path / "a" / "b") as beside:
        (beside / "file").touch()
    assert names(tmp_path) == {"a", "a/b", "a/b/file"}


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_what_a_killed_process_left_is_not_taken_over(old_folder: Path, tmp_path: Path) -> None:
    code = """
    import os, signal, sys
    from pathlib import Path
    from utils import folder_made_whole
    with folder_made_whole(Path(sys.argv[1])) as beside:
        (beside / "half.txt").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert python(code, old_folder, folder=tmp_path).returncode == -9
    assert names(old_folder) == {"sub", "sub/old.txt"}
    with folder_made_whole(old_folder) as beside:
        (beside / "new.txt").touch()
    assert names(old_folder.parent) == {"data", "data/new.txt"}


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert utils.sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# Errors


def ended(error: BaseException, capsys: pytest.CaptureFixture[str], debug: bool = False) -> tuple[int, str]:
    """Exit code and standard error of a script in which `error` was raised."""
    with pytest.raises(SystemExit) as end, error_boundary(debug):
        raise error
    shown = capsys.readouterr()
    assert shown.out == ""
    return end.value.code, shown.err  # type: ignore[return-value]


OUTCOMES: list[tuple[BaseException, int, str]] = [
    (UserError("--lora-r is 0"), 2, "--lora-r is 0"),
    (BundleError("model.safetensors is missing"), 3, "model.safetensors is missing"),
    (OfflineError("offline: refused"), 1, "offline: refused"),
    (WhisperError("it failed"), 1, "it failed"),
    (KeyboardInterrupt(), 75, "interrupted"),
    (ValueError("no such thing\nsecond line"), 1, "ValueError: no such thing (--debug shows where)"),
    (RuntimeError(), 1, "RuntimeError: no further message (--debug shows where)"),
    (MemoryError(), 1, "MemoryError: no further message (--debug shows where)"),
    (
        RuntimeError("in a worker\nTraceback (most recent call last):\n  File x\nValueError: the cause"),
        1,
        "RuntimeError: ValueError: the cause (--debug shows where)",
    ),
]


@pytest.mark.parametrize(("error", "code", "line"), OUTCOMES, ids=lambda value: type(value).__name__)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(error, capsys) == (code, f"error: {line}\n")


@pytest.mark.parametrize(("error", "code", "line"), OUTCOMES, ids=lambda value: type(value).__name__)
def test_debug_adds_the_traceback(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended_with, shown = ended(error, capsys, debug=True)
    assert ended_with == code
    assert shown.startswith("Traceback (most recent call last):")
    assert "test_utils.py" in shown
    assert shown.splitlines()[-1] == f"error: {line}"


def test_a_missing_package_is_told_with_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, error_boundary():
        import no_such_package.part  # type: ignore[import-not-found]  # noqa: F401
    shown = capsys.readouterr().err
    assert (end.value.code, shown.count("\n")) == (2, 1)
    assert "'no_such_package' is missing: pip install -r requirements.txt" in shown


def test_a_missing_part_of_the_project_is_not_looked_for_in_the_package_index(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end, error_boundary():
        import asr.no_such_part  # type: ignore[import-not-found]  # noqa: F401
    shown = capsys.readouterr().err
    assert (end.value.code, shown.count("\n")) == (1, 1)
    assert "asr.no_such_part is missing" in shown
    assert "pip install" not in shown


def test_an_old_python_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "OLDEST_PYTHON", (99, 1))
    with pytest.raises(SystemExit) as end, error_boundary():
        pytest.fail("the block must not begin")
    assert end.value.code == 2
    assert "99.1 or newer is needed" in capsys.readouterr().err


def test_a_block_without_error_goes_on() -> None:
    with error_boundary():
        done = True
    assert done


def test_an_exit_of_the_script_itself_passes() -> None:
    with pytest.raises(SystemExit) as end, error_boundary():
        sys.exit(0)
    assert end.value.code == 0


@pytest.mark.skipif(os.name != "posix", reason="pipes break in another way elsewhere")
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    """`python inference.py … | head -1` ends silently."""
    probe = tmp_path / "probe.py"
    probe.write_text("import utils\nwith utils.error_boundary():\n    for _ in range(99999): print('x' * 99)\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, probe], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Our logger as it was, after the test."""
    before = utils.log.handlers[:], utils.log.level, utils.log.propagate
    yield
    utils.log.handlers[:], utils.log.level, utils.log.propagate = before


@pytest.mark.usefixtures("own_logging")
def test_messages_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output carries results alone."""
    utils.set_up_logging()
    utils.set_up_logging()
    utils.log.info("message %d", 1)
    utils.log.debug("detail")
    utils.set_up_logging(debug=True)
    utils.log.debug("detail of --debug")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "message 1\ndetail of --debug\n")
    assert logging.getLogger("whisper") is utils.log


# Going offline

OFFLINE_PROBE = """
import asyncio, http.server, json, os, socket, sys, tempfile, threading, urllib.request

import utils
utils.go_offline()
utils.go_offline()

socket.setdefaulttimeout(1)
V4, V6, TCP, UDP = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM, socket.SOCK_DGRAM
FAR, FAR6 = ("192.0.2.1", 9), ("2001:db8::1", 9)


def served():
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with socket.create_connection(("localhost", server.server_port)) as client:
            client.sendall(b"HEAD / HTTP/1.0\\r\\n\\r\\n")
            return client.recv(12).decode()


def datagram():
    with socket.socket(V4, UDP) as there, socket.socket(V4, UDP) as here:
        there.bind(("127.0.0.1", 0))
        here.sendto(b"hello", there.getsockname())
        return there.recv(9).decode()


def over_path():
    there, here = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with tempfile.TemporaryDirectory() as folder, there, here:
        there.bind(folder + "/s")
        there.listen()
        here.connect(folder + "/s")
        return "connected"


def over_pair():
    here, there = socket.socketpair()
    with here, there:
        here.sendmsg([b"hello"])
        return there.recv(9).decode()


async def stream(host):
    _, writer = await asyncio.open_connection(host, 9)
    writer.close()


def over_ipv6():
    with socket.socket(V6, TCP) as there, socket.socket(V6, TCP) as here:
        there.bind(("::1", 0))
        there.listen()
        here.connect(there.getsockname())
        return "connected"


CALLS = {
    "connect": lambda: socket.socket(V4, TCP).connect(FAR),
    "connect_ex": lambda: socket.socket(V4, TCP).connect_ex(FAR),
    "connect of UDP": lambda: socket.socket(V4, UDP).connect(FAR),
    "connect to IPv6": lambda: socket.socket(V6, TCP).connect(FAR6),
    "connect to a private network": lambda: socket.socket(V4, TCP).connect(("10.0.0.1", 9)),
    "connect by name": lambda: socket.socket(V4, TCP).connect(("example.invalid", 9)),
    "create_connection": lambda: socket.create_connection(FAR),
    "sendto": lambda: socket.socket(V4, UDP).sendto(b"x", FAR),
    "sendto with flags": lambda: socket.socket(V4, UDP).sendto(b"x", 0, FAR),
    "sendmsg": lambda: socket.socket(V4, UDP).sendmsg([b"x"], [], 0, FAR),
    "sendto by name": lambda: socket.socket(V4, UDP).sendto(b"x", ("example.invalid", 9)),
    "sendmsg by name": lambda: socket.socket(V4, UDP).sendmsg([b"x"], [], 0, ("example.invalid", 9)),
    "bind by name": lambda: socket.socket(V4, UDP).bind(("example.invalid", 0)),
    "getaddrinfo": lambda: socket.getaddrinfo("huggingface.co", 443),
    "getaddrinfo of bytes": lambda: socket.getaddrinfo(b"huggingface.co", 443),
    "gethostbyname": lambda: socket.gethostbyname("huggingface.co"),
    "gethostbyname_ex": lambda: socket.gethostbyname_ex("huggingface.co"),
    "gethostbyaddr": lambda: socket.gethostbyaddr("192.0.2.1"),
    "getnameinfo": lambda: socket.getnameinfo(FAR, 0),
    "urlopen": lambda: urllib.request.urlopen("http://192.0.2.1:9/"),
    "urlopen by name": lambda: urllib.request.urlopen("https://huggingface.co/"),
    "asyncio": lambda: asyncio.run(stream("192.0.2.1")),
    "asyncio by name": lambda: asyncio.run(stream("huggingface.co")),
    "a server on loopback": served,
    "a datagram on loopback": datagram,
    "a socket pair": over_pair,
    "getaddrinfo of an address": lambda: socket.getaddrinfo("127.0.0.1", 80)[0][4][0],
    "getaddrinfo of localhost": lambda: socket.getaddrinfo("localhost", 80, V4)[0][4][0],
    "getaddrinfo of every interface": lambda: bool(socket.getaddrinfo(None, 0, flags=socket.AI_PASSIVE)),
    "gethostbyname of localhost": lambda: socket.gethostbyname("localhost"),
    "own name": lambda: bool(socket.gethostname()),
}
if hasattr(socket, "AF_UNIX"):
    CALLS["a local socket"] = over_path
try:
    socket.socket(V6, TCP).bind(("::1", 0))
    CALLS["loopback of IPv6"] = over_ipv6
except OSError:
    pass


def outcome(call):
    try:
        return ["done", str(call())]
    except BaseException as error:
        return [type(error).__name__, str(error)]


print(json.dumps({"calls": {name: outcome(call) for name, call in CALLS.items()}, "environment": dict(os.environ)}))
"""
REFUSED = {
    "connect": "socket.connect to 192.0.2.1:9",
    "connect_ex": "socket.connect to 192.0.2.1:9",
    "connect of UDP": "socket.connect to 192.0.2.1:9",
    "connect to IPv6": "socket.connect to 2001:db8::1:9",
    "connect to a private network": "socket.connect to 10.0.0.1:9",
    "connect by name": "example.invalid",
    "create_connection": "socket.connect to 192.0.2.1:9",
    "sendto": "socket.sendto to 192.0.2.1:9",
    "sendto with flags": "socket.sendto to 192.0.2.1:9",
    "sendmsg": "socket.sendmsg to 192.0.2.1:9",
    "sendto by name": "example.invalid",
    "sendmsg by name": "example.invalid",
    "bind by name": "example.invalid",
    "getaddrinfo": "socket.getaddrinfo to huggingface.co",
    "getaddrinfo of bytes": "huggingface.co",
    "gethostbyname": "socket.gethostbyname to huggingface.co",
    "gethostbyname_ex": "socket.gethostbyname to huggingface.co",
    "gethostbyaddr": "socket.gethostbyaddr to 192.0.2.1",
    "getnameinfo": "socket.getnameinfo to 192.0.2.1",
    "urlopen": "socket.connect to 192.0.2.1:9",
    "urlopen by name": "socket.getaddrinfo to huggingface.co",
    "asyncio": "socket.connect to 192.0.2.1:9",
    "asyncio by name": "socket.getaddrinfo to huggingface.co",
}
ALLOWED = {
    "a server on loopback": "HTTP/1.0 501",
    "a datagram on loopback": "hello",
    "a socket pair": "hello",
    "getaddrinfo of an address": "127.0.0.1",
    "getaddrinfo of localhost": "127.0.0.1",
    "getaddrinfo of every interface": "True",
    "gethostbyname of localhost": "127.0.0.1",
    "own name": "True",
}


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every call in a process that went offline: it cannot be undone, so not in this one."""
    done = python(OFFLINE_PROBE, folder=tmp_path_factory.mktemp("offline"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("call", REFUSED)
def test_what_would_leave_this_machine_is_refused(offline: dict[str, Any], call: str) -> None:
    kind, message = offline["calls"][call]
    assert (kind, message[:9]) == ("OfflineError", "offline: ")
    assert REFUSED[call] in message


@pytest.mark.parametrize("call", ["connect", "getaddrinfo", "sendto", "create_connection"])
def test_a_refusal_names_the_line_that_called(offline: dict[str, Any], call: str) -> None:
    message = offline["calls"][call][1]
    line = 1 + next(n for n, text in enumerate(OFFLINE_PROBE.splitlines()) if text.startswith(f'    "{call}":'))
    assert f"probe.py:{line} in" in message


@pytest.mark.parametrize("call", ALLOWED)
def test_what_stays_on_this_machine_works(offline: dict[str, Any], call: str) -> None:
    assert offline["calls"][call] == ["done", ALLOWED[call]]


@pytest.mark.parametrize("call", ["a local socket", "loopback of IPv6"])
def test_what_stays_on_this_machine_works_where_there_is_such_a_thing(offline: dict[str, Any], call: str) -> None:
    if call not in offline["calls"]:
        pytest.skip("this machine has none")
    assert offline["calls"][call] == ["done", "connected"]


def test_switches_of_the_libraries_are_set(offline: dict[str, Any]) -> None:
    environment = offline["environment"]
    for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        assert environment[switch] == "1"
    assert environment["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert {"127.0.0.1", "localhost"} <= set(environment["NO_PROXY"].split(","))
    assert environment.items() >= utils.OFFLINE_SWITCHES.items()


def test_switches_win_over_the_environment_and_reach_the_hub_client(tmp_path: Path) -> None:
    code = """
    import os
    os.environ["HF_HUB_OFFLINE"] = "0"
    import utils
    utils.go_offline()
    from huggingface_hub import constants
    print(constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY)
    """
    assert python(code, folder=tmp_path).stdout.split() == ["True", "True"]
