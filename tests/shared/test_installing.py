"""Installing on the box: everything that does not fit is told before anything is installed."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asr.shared import driver, installing
from asr.shared.driver import driver_cuda, driver_trouble, driver_version, gpus
from asr.shared.installing import machine_troubles, read_list, this_platform
from tests.conftest import ROOT
from tests.wheels import make_wheel
from utils import BundleError, UserError, sha256_of

CODE = (
    "import sys, utils; from pathlib import Path; from asr.shared.installing import install\n"
    "with utils.error_boundary(): utils.set_up_logging(); install(Path(sys.argv[1]))"
)
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
FITS: dict[str, Any] = {
    "format": 1,
    "target": {"python": HERE, "platform": this_platform(), "glibc": None, "macos": None},
    "torch": {"version": None, "cuda": None, "driver": None},
    "pip": "pip-0-py3-none-any.whl",
    "unpacked": 1000,
    "wheels": [],
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with a wheelhouse of one wheel that suits this machine; its pip is a stand-in that must not run."""
    folder = tmp_path / "bundle" / "wheels"
    wheels = [make_wheel(folder, "pip", "0"), make_wheel(folder, "speech", "1.0")]
    requirements = folder / "requirements.txt"
    requirements.write_text(f"speech==1.0 --hash=sha256:{sha256_of(wheels[1])}\n")
    entries = [
        {"name": wheel.name.split("-")[0], "version": wheel.name.split("-")[1], **entry_of(wheel)} for wheel in wheels
    ]
    contents = {**copy.deepcopy(FITS), "requirements": entry_of(requirements), "wheels": entries}
    (folder / "wheels.json").write_text(json.dumps(contents))
    return folder.parent


def entry_of(file: Path) -> dict[str, Any]:
    return {"file": file.name, "size": file.stat().st_size, "sha256": sha256_of(file)}


def change(bundle: Path, **groups: dict[str, Any]) -> None:
    file = bundle / "wheels" / "wheels.json"
    contents = json.loads(file.read_text())
    for group, values in groups.items():
        contents[group] |= values
    file.write_text(json.dumps(contents))


def installed(bundle: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE, str(bundle)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def troubles(**groups: dict[str, Any]) -> list[str]:
    contents = copy.deepcopy(FITS)
    for group, values in groups.items():
        contents[group] |= values
    return [trouble for trouble in machine_troubles(contents) if "belongs to the system" not in trouble]


def test_a_machine_that_fits_has_no_troubles() -> None:
    assert troubles() == []


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"python": "3.99"}, f"this is Python {HERE}, and the wheels are for 3.99"),
        ({"platform": "win_arm64"}, "and the wheels are for win_arm64"),
    ],
)
def test_another_machine_is_told(target: dict[str, str], said: str) -> None:
    assert said in troubles(target=target)[0]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is of Linux")
def test_a_newer_glibc_is_told_and_an_older_one_is_not() -> None:
    assert troubles(target={"glibc": "2.5"}) == []
    assert "the wheels need 2.99 or newer" in troubles(target={"glibc": "2.99"})[0]


def test_a_disk_that_is_too_small_is_told() -> None:
    contents = {**FITS, "unpacked": 10**18, "wheels": [{"name": "absent", "version": "1", "file": "a.whl"}]}
    assert any("make room" in trouble for trouble in machine_troubles(contents))


def test_everything_wrong_is_told_at_once_and_nothing_is_installed(bundle: Path) -> None:
    change(bundle, target={"python": "3.99", "platform": "win_arm64"})
    done = installed(bundle)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line for line in lines if "3.99" in line]
    assert [line for line in lines if "win_arm64" in line]
    assert lines[-1].startswith("error: nothing was installed: ")
    assert "Traceback" not in done.stderr


def test_a_single_trouble_is_one_line(bundle: Path) -> None:
    change(bundle, target={"python": "3.99"})
    done = installed(bundle)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes instead of"),
        (lambda file: file.write_bytes(b"?" + file.read_bytes()[1:]), "SHA-256 differs"),
        (lambda file: file.unlink(), "is missing"),
    ],
)
@pytest.mark.parametrize("name", ["speech-1.0-py3-none-any.whl", "requirements.txt", "pip-0-py3-none-any.whl"])
def test_a_damaged_wheelhouse_installs_nothing(
    bundle: Path, harm: Callable[[Path], object], said: str, name: str
) -> None:
    harm(bundle / "wheels" / name)
    with pytest.raises(BundleError, match=f"^nothing was installed: .*{name} .*{said}.*; copy bundle/wheels again"):
        installing.install(bundle)


def test_damage_ends_with_3_even_beside_other_troubles(bundle: Path) -> None:
    change(bundle, target={"python": "3.99"})
    (bundle / "wheels" / "speech-1.0-py3-none-any.whl").unlink()
    done = installed(bundle)
    assert done.returncode == 3
    assert "3.99" in done.stderr
    assert "is missing" in done.stderr


def test_no_wheelhouse_is_the_users_error_and_an_unfinished_one_the_bundles(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(UserError, match=r"there is no such folder; run_online_setup.py --wheels makes it"):
        read_list(tmp_path / "nothing")
    (bundle / "wheels" / "wheels.json").unlink()
    with pytest.raises(BundleError, match=r"wheels.json is missing: collecting did not finish"):
        read_list(bundle / "wheels")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "target": 3}', "\x00"])
def test_a_list_that_cannot_be_read_is_one_line(bundle: Path, text: str) -> None:
    (bundle / "wheels" / "wheels.json").write_text(text)
    with pytest.raises(BundleError, match=r"wheels.json cannot be read"):
        read_list(bundle / "wheels")


def test_a_list_cannot_name_files_elsewhere(bundle: Path) -> None:
    change(bundle, requirements={"file": "../../secret"})
    with pytest.raises(BundleError, match="names files outside its folder"):
        read_list(bundle / "wheels")


def test_the_box_needs_the_standard_library_alone() -> None:
    """What installs the packages cannot lean on them."""
    code = "import sys; import asr.shared.installing; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - sys.stdlib_module_names - {"asr", "utils", "config", "__main__"} == set()


# The driver


@pytest.fixture
def box_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a command in nvidia-smi's place that answers as one on a box would."""
    if os.name == "nt":
        pytest.skip("the stand-in is a shell script")
    monkeypatch.setattr(driver, "KERNEL_MODULE", tmp_path / "version")
    monkeypatch.setattr(installing, "driver_cuda", lambda: None)

    def put(version: str, gpu: str = "NVIDIA L4, 8.9") -> None:
        command = tmp_path / "bin" / "nvidia-smi"
        command.parent.mkdir(exist_ok=True)
        answers = f"case $1 in *driver_version*) echo '{version}';; *name,compute_cap*) echo '{gpu}';; esac"
        command.write_text(f"#!/bin/sh\n{answers}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")

    return put


def test_a_driver_that_is_too_old_is_told_with_the_way_out(box_driver: Callable[..., None]) -> None:
    box_driver("535.104.05")
    (said,) = troubles(torch={"cuda": "13.0"})
    assert said.startswith("driver 535.104.05 is too old for torch's CUDA 13.0, which needs 580 or newer: install")
    assert "--target-cuda 126 --wheel-index" in said
    assert troubles(torch={"cuda": "12.6"}) == []


def test_a_driver_that_is_new_enough_is_not_told(box_driver: Callable[..., None]) -> None:
    box_driver("580.65.06")
    assert troubles(torch={"cuda": "13.0"}) == []


def test_a_gpu_that_cuda_has_left_behind_is_told(box_driver: Callable[..., None]) -> None:
    box_driver("580.65.06", "Tesla V100-SXM2-16GB, 7.0")
    assert gpus() == [("Tesla V100-SXM2-16GB", (7, 0))]
    (said,) = troubles(torch={"cuda": "13.0"})
    assert said.startswith("Tesla V100-SXM2-16GB has compute capability 7.0, and torch's CUDA 13.0 begins at 7.5")
    assert troubles(torch={"cuda": "12.6"}) == []


def test_wheels_without_cuda_ask_for_no_driver(box_driver: Callable[..., None]) -> None:
    box_driver("390.1", "GeForce, 3.0")
    assert troubles(torch={"cuda": None}) == []


def test_the_kernel_module_tells_the_driver_where_nvidia_smi_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    module = tmp_path / "version"
    monkeypatch.setattr(driver, "KERNEL_MODULE", module)
    assert driver_version() is None
    module.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90.07  Fri May 31 09:35:42 UTC 2024\n")
    assert driver_version() == "550.90.07"


def test_the_drivers_own_library_is_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "driver_version", lambda: None)
    monkeypatch.setattr(installing, "gpus", list)
    monkeypatch.setattr(installing, "driver_cuda", lambda: "12.4")
    assert "the NVIDIA driver serves CUDA 12.4" in troubles(torch={"cuda": "13.0"})[0]
    monkeypatch.setattr(installing, "driver_cuda", lambda: None)
    assert troubles(torch={"cuda": "13.0"}) == []
    assert driver_cuda() is None or driver_cuda().count(".") == 1


@pytest.mark.parametrize(
    ("version", "cuda", "old"),
    [("579.99", "13.0", True), ("580.00", "13.2", False), ("524.1", "12.6", True), ("525.60.13", "12.6", False),
     (None, "13.0", False), ("390.1", "99.0", False)],
)  # fmt: skip
def test_each_generation_of_cuda_has_its_oldest_driver(version: str | None, cuda: str, old: bool) -> None:
    assert bool(driver_trouble(version, cuda)) is old
