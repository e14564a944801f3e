"""The wheelhouse: what pip is asked, what of it arrives, and what is written down. pip and the indexes are real."""

from __future__ import annotations

import functools
import http.server
import itertools
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from asr.online import wheelhouse
from asr.online.resolution import Pip, Wheel, parse_pins, resolve
from asr.online.target import Target, target_of
from asr.online.wheel_list import _cuda_of, _oldest
from asr.online.wheelhouse import PIP, collect_wheels
from asr.shared.installing import this_platform
from config import Wheels
from tests.conftest import ROOT
from tests.wheels import make_index, make_wheel
from utils import UserError, sha256_of

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
WINDOWS = Target("3.11.9", "win_amd64", "")
LINUX = Target("3.11.9", "linux_x86_64", "")
# Of the project's own pins: pure ones and compiled ones.
REAL = ("numpy", "MarkupSafe", "Jinja2", "tqdm", "PyYAML")


@pytest.fixture(scope="session")
def pip_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the pip that comes along, from wherever this machine's pip finds it."""
    folder = tmp_path_factory.mktemp("pip")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--retries",
        "0",
        "--no-deps",
        "-d",
        folder,
        f"pip=={PIP}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine's pip reaches no index that has pip {PIP}")
    wheel = next(folder.glob("pip-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return wheel


@pytest.fixture(scope="session")
def pip_place(pip_wheel: Path) -> Path:
    """The folder into which it was unpacked."""
    return pip_wheel.parent / "unpacked"


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip_wheel: Path) -> Path:
    """A folder that is pip's only source of wheels beside the one of pip itself."""
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{folder.as_uri()} {pip_wheel.parent.as_uri()}")
    return folder


def write_pins(folder: Path, *pins: str) -> Path:
    file = folder / "requirements.txt"
    file.write_text("# Exact pins.\n\n" + "".join(f"{pin}\n" for pin in pins), encoding="utf-8")
    return file


def found_for(target: Target, pip_place: Path, pins: Path, index: str | None = None) -> dict[str, str]:
    found = resolve(Pip(target, pip_place), parse_pins(pins, target), index)
    return {wheel.name: wheel.version for wheel in found}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[str]:
    """The address of a server of tmp_path/site."""
    (tmp_path / "site").mkdir()
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "site"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple"
    server.shutdown()
    server.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


# The target


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({"target_python": "3.12", "target_platform": "win_amd64"}, Target("3.12.9", "win_amd64", "")),
        ({"target_python": "3.12.4", "target_platform": "linux_aarch64"}, Target("3.12.4", "linux_aarch64", "")),
        ({"target_python": "3.13", "target_cuda": "cpu", "target_platform": "win_amd64"},
         Target("3.13.9", "win_amd64", "cpu")),
    ],
)  # fmt: skip
def test_the_flags_describe_the_target(flags: dict[str, str], wanted: Target) -> None:
    assert target_of(Wheels(**flags)) == wanted


@pytest.mark.parametrize("named", ["126", "12.6", "cu126", "CU126"])
def test_a_cuda_version_has_many_spellings(named: str) -> None:
    assert target_of(Wheels(target_cuda=named, target_platform="win_amd64")).cuda == "cu126"


def test_a_generation_of_cuda_alone_is_its_first_version() -> None:
    assert target_of(Wheels(target_cuda="13", target_platform="win_amd64")).cuda == "cu130"


def test_the_target_is_this_machine_unless_told_otherwise() -> None:
    target = target_of(Wheels())
    assert (target.minor, target.platform, target.cuda) == (HERE, this_platform(), "")


@pytest.mark.parametrize(
    "flags",
    [
        {"target_python": "3"},
        {"target_python": "3.10"},
        {"target_python": "three"},
        {"target_platform": "win32"},
        {"target_platform": "linux"},
        {"target_cuda": "cu 12"},
    ],
)
def test_a_target_of_which_there_are_no_wheels_is_one_line(flags: dict[str, str]) -> None:
    flag = "--" + next(iter(flags)).replace("_", "-")
    with pytest.raises(UserError, match=f"^{flag} ") as told:
        target_of(Wheels(**flags))
    assert "\n" not in str(told.value)


def test_musl_is_never_asked_for_and_the_oldest_glibc_goes_first() -> None:
    flags = LINUX.pip_flags(31)
    tags = [tag for before, tag in itertools.pairwise(flags) if before == "--platform"]
    assert tags[:2] == ["manylinux1_x86_64", "manylinux_2_5_x86_64"]
    assert {f"manylinux_2_{minor}_x86_64" for minor in range(5, 32)} <= set(tags)
    assert {"manylinux2010_x86_64", "manylinux2014_x86_64"} <= set(tags)
    assert not [tag for tag in tags if "musl" in tag]


# What the target needs


def test_markers_hold_for_the_target_and_not_for_this_machine(tmp_path: Path, links: Path, pip_place: Path) -> None:
    """pip itself would look for triton on Windows, and for no colorama there, when it runs on Linux."""
    make_wheel(links, "bars", "1.0", ('colorama; platform_system == "Windows"', 'triton==3.0; sys_platform == "linux"'))
    make_wheel(links, "colorama", "0.4.6")
    make_wheel(links, "colorama", "0.5")
    make_wheel(links, "triton", "3.0", tag="cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64")
    pins = write_pins(tmp_path, "bars==1.0", 'winonly==1.0; sys_platform == "win32"')
    make_wheel(links, "winonly", "1.0", tag="cp311-cp311-win_amd64")
    assert found_for(WINDOWS, pip_place, pins) == {"bars": "1.0", "colorama": "0.4.6", "winonly": "1.0"}
    assert found_for(LINUX, pip_place, pins) == {"bars": "1.0", "triton": "3.0"}


def test_extras_bring_what_they_name_and_no_more(tmp_path: Path, links: Path, pip_place: Path) -> None:
    make_wheel(links, "model", "1.0", ("kit[blas,fft]==13.0",))
    make_wheel(links, "kit", "13.0", ('blas<2; extra == "blas"', 'fft; extra == "fft"', 'gui; extra == "gui"'))
    for name, version in (("blas", "1.5"), ("blas", "2.0"), ("fft", "1.0"), ("gui", "1.0")):
        make_wheel(links, name, version)
    found = found_for(LINUX, pip_place, write_pins(tmp_path, "model==1.0"))
    assert found == {"model": "1.0", "kit": "13.0", "blas": "1.5", "fft": "1.0"}


def test_pins_that_contradict_each_other_on_the_target_are_one_line(
    tmp_path: Path, links: Path, pip_place: Path
) -> None:
    make_wheel(links, "upper", "1.0", ("lower>=2",))
    make_wheel(links, "lower", "1.0")
    with pytest.raises(UserError, match=r"^the pins do not fit together .*: upper needs lower>=2, and lower is 1.0$"):
        found_for(LINUX, pip_place, write_pins(tmp_path, "upper==1.0", "lower==1.0"))


def test_a_package_without_a_wheel_for_the_target_is_one_line(tmp_path: Path, links: Path, pip_place: Path) -> None:
    make_wheel(links, "good", "1.0")
    make_wheel(links, "bad", "1.0", tag="cp311-cp311-manylinux_2_28_x86_64")
    with pytest.raises(UserError, match=r"no wheel of bad==1.0 for Python 3.11 on win_amd64 .*choose another") as told:
        found_for(WINDOWS, pip_place, write_pins(tmp_path, "good==1.0", "bad==1.0"))
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"no wheel of good==7.0 for .* \(it has them of 1.0\)"):
        found_for(WINDOWS, pip_place, write_pins(tmp_path, "good==7.0"))


def test_a_wheel_for_musl_alone_is_no_wheel(tmp_path: Path, links: Path, pip_place: Path) -> None:
    make_wheel(links, "alpine", "1.0", tag="cp311-cp311-musllinux_1_2_x86_64")
    with pytest.raises(UserError, match="no wheel of alpine"):
        found_for(LINUX, pip_place, write_pins(tmp_path, "alpine==1.0"))


def test_an_older_glibc_will_do_where_there_is_a_choice(tmp_path: Path, links: Path, pip_place: Path) -> None:
    """A box with RHEL 8 shall not be shut out by one package that has a wheel for everything, too."""
    make_wheel(links, "server", "1.0", tag="py3-none-manylinux_2_31_x86_64")
    make_wheel(links, "server", "1.0")
    pip, pins = Pip(LINUX, pip_place), parse_pins(write_pins(tmp_path, "server==1.0"), LINUX)
    assert [wheel.file for wheel in resolve(pip, pins)] == ["server-1.0-py3-none-any.whl"]
    (links / "server-1.0-py3-none-any.whl").unlink()
    assert [wheel.file for wheel in resolve(pip, pins)] == ["server-1.0-py3-none-manylinux_2_31_x86_64.whl"]


def test_what_has_no_pin_stays_at_the_version_that_is_there(tmp_path: Path, links: Path, pip_place: Path) -> None:
    """A second collection months later must change only what had to change."""
    make_wheel(links, "model", "1.0", ("lib>=1",))
    for version in ("1.0", "1.1"):
        make_wheel(links, "lib", version)
    pip, pins = Pip(LINUX, pip_place), parse_pins(write_pins(tmp_path, "model==1.0"), LINUX)
    assert [wheel.version for wheel in resolve(pip, pins) if wheel.name == "lib"] == ["1.1"]
    held = resolve(pip, pins, before={"lib": "1.0"})
    assert [wheel.version for wheel in held if wheel.name == "lib"] == ["1.0"]


@pytest.mark.parametrize("line", ["numpy=", "-r other.txt", "numpy 2.0"])
def test_a_line_that_is_no_requirement_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(UserError, match=r"requirements.txt, line 3: .* is no requirement"):
        parse_pins(write_pins(tmp_path, line), LINUX)


# Torch for another CUDA


def test_another_torch_comes_from_the_index_that_is_named_with_what_it_needs(
    tmp_path: Path, links: Path, serve: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only that: such an index holds copies of other packages, which nobody has pinned or tried."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "nothing").as_uri())
    files = tmp_path / "site" / "files"
    torch = make_wheel(files, "torch", "2.0+cu126", ("numpy", 'nvidia-nccl-cu12==2.1; platform_system == "Linux"'),
                       tag="cp311-cp311-manylinux_2_28_x86_64")  # fmt: skip
    nccl = make_wheel(files, "nvidia_nccl_cu12", "2.1", tag="py3-none-manylinux2014_x86_64")
    copy = make_wheel(files, "numpy", "2.0", note="a copy", tag="cp311-cp311-manylinux_2_28_x86_64")
    make_index(tmp_path / "site", [torch, nccl, copy])
    make_wheel(links, "torch", "2.0")
    own = make_wheel(links, "numpy", "2.0")
    pins = write_pins(tmp_path, "torch==2.0", "numpy==2.0")

    bundle = tmp_path / "bundle"
    flags = {"target_python": "3.11", "target_platform": "linux_x86_64", "target_cuda": "126", "wheel_index": serve}
    collect_wheels(bundle, Wheels(**flags), pins)
    contents = json.loads((bundle / "wheels" / "wheels.json").read_text(encoding="utf-8"))
    assert contents["torch"] == {"version": "2.0+cu126", "cuda": "12.6", "driver": 525}
    assert contents["target"] == {"python": "3.11", "platform": "linux_x86_64", "glibc": "2.28", "macos": None}
    assert {wheel["name"] for wheel in contents["wheels"]} == {"torch", "numpy", "nvidia-nccl-cu12", "pip"}
    assert sha256_of(bundle / "wheels" / own.name) == sha256_of(own)
    listed = (bundle / "wheels" / "requirements.txt").read_text(encoding="utf-8")
    assert f"torch==2.0+cu126 --hash=sha256:{sha256_of(torch)}\n" in listed
    assert "pip==" not in listed
    assert serve not in json.dumps(contents)


def test_another_torch_without_an_index_says_what_is_missing(tmp_path: Path, links: Path, pip_place: Path) -> None:
    make_wheel(links, "torch", "2.0", tag="cp311-cp311-manylinux_2_28_x86_64")
    target = Target("3.11.9", "linux_x86_64", "cu126")
    with pytest.raises(UserError, match=r"no index has a wheel of torch==2.0\+cu126 .* --wheel-index URL"):
        found_for(target, pip_place, write_pins(tmp_path, "torch==2.0"))


@pytest.mark.parametrize(
    ("versions", "cuda"),
    [
        ({"torch": "2.13.0+cu126"}, "12.6"),
        ({"torch": "2.13.0+cu130"}, "13.0"),
        ({"torch": "2.13.0+cpu"}, None),
        ({"torch": "2.13.0"}, None),
        ({"torch": "2.13.0", "cuda-toolkit": "13.0.3.0"}, "13.0"),
        ({"torch": "2.9.0", "nvidia-cudnn-cu12": "9.1"}, "12.0"),
        ({"numpy": "2.0"}, None),
    ],
)
def test_the_cuda_of_a_torch_is_told_by_its_version_or_by_its_company(
    versions: dict[str, str], cuda: str | None
) -> None:
    assert _cuda_of([Wheel(name, version, "", "", ()) for name, version in versions.items()]) == cuda


def test_the_system_that_is_needed_is_the_newest_of_the_oldest() -> None:
    names = [
        "a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.manylinux_2_28_x86_64.whl",
        "b-1-cp311-cp311-manylinux2010_x86_64.whl",
        "c-1-py3-none-manylinux_2_24_x86_64.whl",
        "d-1-py3-none-any.whl",
    ]
    wheels = [Wheel(name, "1", f"file:///links/{name}", "", ()) for name in names]
    assert _oldest(wheels, "manylinux") == "2.24"
    assert _oldest(wheels[1:2], "manylinux") == "2.12"
    assert _oldest(wheels, "macosx") is None
    assert _oldest([Wheel("e", "1", "file:///e-1-cp311-cp311-macosx_14_0_arm64.whl", "", ())], "macosx") == "14.0"


# Fetching


def test_only_what_is_missing_or_wrong_is_fetched_again(
    tmp_path: Path, links: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two", "three", "four"):
        make_wheel(links, name, "1.0", note="x" * 100)
    bundle = tmp_path / "번들 with spaces"
    folder = bundle / "wheels"
    collect_wheels(bundle, Wheels(), write_pins(tmp_path, "one==1.0", "two==1.0", "three==1.0", "four==1.0"))
    before = {file.name: sha256_of(file) for file in folder.iterdir()}
    stamp = (folder / "one-1.0-py3-none-any.whl").stat().st_mtime_ns

    (folder / "two-1.0-py3-none-any.whl").unlink()
    damaged = folder / "three-1.0-py3-none-any.whl"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    capfd.readouterr()
    logged = collected_log(bundle, tmp_path / "requirements.txt", capfd)
    assert "5 wheels" in logged
    assert "to fetch: 2," in logged
    assert {file.name: sha256_of(file) for file in folder.iterdir()} == before
    assert (folder / "one-1.0-py3-none-any.whl").stat().st_mtime_ns == stamp

    (folder / ".fetching.killed").mkdir()
    write_pins(tmp_path, "one==1.0")
    assert "to fetch: 0," in collected_log(bundle, tmp_path / "requirements.txt", capfd)
    assert sorted(file.name for file in folder.iterdir()) == [
        "one-1.0-py3-none-any.whl", f"pip-{PIP}-py3-none-any.whl", "requirements.txt", "wheels.json",
    ]  # fmt: skip


def collected_log(bundle: Path, pins: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Collect as a script does, in another process, and return what it said."""
    code = (
        "import sys, utils; from pathlib import Path; from config import Wheels\n"
        "from asr.online.wheelhouse import collect_wheels\n"
        "with utils.error_boundary():\n"
        "    utils.set_up_logging(); collect_wheels(Path(sys.argv[1]), Wheels(), Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, str(bundle), str(pins)], cwd=ROOT, check=True)
    return capfd.readouterr().err


@pytest.mark.usefixtures("links")
def test_a_wheel_that_is_not_what_the_index_says_is_refused(
    tmp_path: Path, serve: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", serve)
    wheel = make_wheel(tmp_path / "site" / "files", "bent", "1.0")
    make_index(tmp_path / "site", [wheel], sha256="0" * 64)
    with pytest.raises(
        UserError, match=r"^the wheel of bent(==1\.0)? arrived with another SHA-256 than the index tells"
    ) as told:
        collect_wheels(tmp_path / "bundle", Wheels(), write_pins(tmp_path, "bent==1.0"))
    assert "\n" not in str(told.value)
    assert [file.name for file in (tmp_path / "bundle" / "wheels").glob("bent*")] == []
    assert not (tmp_path / "bundle" / "wheels" / "wheels.json").exists()


@pytest.mark.usefixtures("links")
def test_an_index_that_cannot_be_reached_is_one_line(
    tmp_path: Path, pip_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(UserError, match=r"^the package index cannot be reached \(asked for absent==1.0\)") as told:
        found_for(LINUX, pip_place, write_pins(tmp_path, "absent==1.0"))
    assert "\n" not in str(told.value)


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    tmp_path: Path, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(links, "one", "1.0")
    monkeypatch.setattr(wheelhouse.shutil, "disk_usage", lambda path: Disk())
    with pytest.raises(UserError, match=r"has 1\.0 kB free, and the wheels need .* MB: make room"):
        collect_wheels(tmp_path / "bundle", Wheels(), write_pins(tmp_path, "one==1.0"))
    assert list((tmp_path / "bundle" / "wheels").iterdir()) == []


class Disk:
    """A full disk."""

    free = 1000


# The project's own pins


@pytest.fixture(scope="module")
def real_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the project's own pins, collected for this machine from wherever its pip finds them."""
    folder = tmp_path_factory.mktemp("real")
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    write_pins(folder, *[line for line in lines if line.partition("==")[0] in REAL])
    try:
        collect_wheels(folder / "bundle", Wheels(), folder / "requirements.txt")
    except UserError as error:
        if f"pip=={PIP}" in str(error):
            pytest.skip(str(error))
        raise
    return folder / "bundle"


def test_the_round_trip(real_bundle: Path, tmp_path: Path) -> None:
    """Collected here, installed with the network cut into an environment that has not even pip, and imported."""
    environment = tmp_path / "환경 1"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    code = (
        "import sys, utils; from pathlib import Path; from asr.shared.installing import install\n"
        "with utils.error_boundary(): utils.set_up_logging(); install(Path(sys.argv[1]))"
    )
    cut = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0
    prefix = ["unshare", "-rn"] if cut else []
    nowhere = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "PIP_FIND_LINKS": "/nowhere",
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    done = subprocess.run([*prefix, python, "-c", code, real_bundle], cwd=ROOT, env={**os.environ, **nowhere},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"installed: {len(REAL)} packages, in the versions that the bundle brought\n"
    names = "numpy, markupsafe, jinja2, tqdm, yaml"
    imported = subprocess.run([python, "-c", f"import {names}; print(numpy.ones(3).sum(), numpy.__file__)"],
                              capture_output=True, text=True, check=True)  # fmt: skip
    assert imported.stdout.startswith("3.0 ")
    assert str(environment) in imported.stdout


def test_wheels_for_windows_are_found_from_anywhere(pip_place: Path, tmp_path: Path) -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = write_pins(tmp_path, *[line for line in lines if line.partition("==")[0] in REAL])
    try:
        found = resolve(Pip(WINDOWS, pip_place), parse_pins(pins, WINDOWS))
    except UserError as error:
        pytest.skip(f"this machine's index has no wheels for Windows: {error}")
    files = {wheel.name: wheel.file for wheel in found}
    assert files["numpy"].endswith("-cp311-cp311-win_amd64.whl")
    assert "colorama" in files
    assert all("linux" not in file for file in files.values())
