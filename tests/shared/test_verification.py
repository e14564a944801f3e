"""Verification: each file that is not as the manifest says is listed with what is wrong, and nothing crashes."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest

from asr.shared import verification
from asr.shared.bundle import open_bundle, read_manifest, seal
from asr.shared.checksums import compare_contents, digests_of
from asr.shared.meter import Meter
from asr.shared.project import KINDS, compare_project, half_copied, list_project, project_files
from asr.shared.verification import verify
from tests.conftest import ROOT, script
from utils import BundleError, UserError

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def own(mini_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of one's own, to be damaged; sealed with the project as it is at this moment."""
    return sealed_again(shutil.copytree(mini_bundle, tmp_path / "bundle"))


def sealed_again(bundle: Path) -> Path:
    manifest = read_manifest(bundle).manifest
    seal(bundle, manifest["base_model"], manifest["config"], manifest["data"])
    return bundle


def found(bundle: Path, capsys: pytest.CaptureFixture[str], quick: bool = False) -> dict[str, str]:
    """Return what is listed: kind of each file."""
    with pytest.raises(BundleError) as raised:
        verify(bundle, quick)
    assert raised.value.exit_code == 3
    assert "\n" not in str(raised.value)
    lines = capsys.readouterr().out.splitlines()
    return {line[11:].partition(": ")[0]: line.split()[0] for line in lines}


def arrow(bundle: Path) -> Path:
    return bundle / "data" / "train" / "data-00000.arrow"


@pytest.mark.parametrize("quick", [False, True])
def test_of_a_whole_bundle_one_line_is_told(own: Path, quick: bool) -> None:
    done = script("run_online_setup.py", "--verify", "--bundle-dir", own, *(["--quick"] if quick else []))
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith(str(own))
    assert ("not read" in line) == quick


def test_a_thousand_bit_flips_and_truncations_are_found(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anywhere in any file, both manifests included; none of them crashes it."""
    # The project, which is not what is damaged here, would take most of the time.
    monkeypatch.setattr("asr.shared.bundle.list_project", dict)
    sealed_again(own)
    rng = random.Random(4)
    files = [file for file in sorted(own.rglob("*")) if file.is_file() and file.stat().st_size]
    for _ in range(1000):
        file = rng.choice(files)
        whole = file.read_bytes()
        damaged = bytearray(whole)
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(whole)) :]
        else:
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        name = file.relative_to(own).as_posix()
        kinds = found(own, capsys)
        if name.startswith("manifest."):
            assert kinds == {}
        else:
            assert kinds == {name: "altered" if len(damaged) == len(whole) else "shorter"}
        file.write_bytes(whole)
    verify(own)


def test_each_kind_of_damage_is_listed(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "model" / "tokenizer.json").unlink()
    (own / "data" / "train" / "data-00009.arrow").write_bytes(b"x")
    with open(arrow(own), "r+b") as file:
        file.truncate(1000)
    with open(own / "model" / "config.json", "ab") as file:
        file.write(b"\n")
    content = bytearray((own / "model" / "model.safetensors").read_bytes())
    content[-1] ^= 128
    (own / "model" / "model.safetensors").write_bytes(content)
    (own / "reports" / "data.html").unlink()
    (own / "reports" / "data.html").mkdir()
    sizes = {
        "model/tokenizer.json": "missing",
        "data/train/data-00009.arrow": "extra",
        "data/train/data-00000.arrow": "shorter",
        "model/config.json": "longer",
        "reports/data.html": "unreadable",
    }
    assert found(own, capsys) == {**sizes, "model/model.safetensors": "altered"}
    assert found(own, capsys, quick=True) == sizes


def test_the_command_lists_them_and_ends_with_three(own: Path) -> None:
    (own / "model" / "tokenizer.json").unlink()
    arrow(own).write_bytes(b"")
    done = script("run_online_setup.py", "--verify", "--bundle-dir", own)
    assert done.returncode == 3
    assert done.stdout.splitlines()[1] == "missing    model/tokenizer.json: is missing"
    (line,) = done.stderr.splitlines()
    assert "1 missing, 1 shorter" in line
    assert "copy these files again" in line


@pytest.mark.skipif(AS_ROOT or os.name == "nt", reason="this user may read everything")
def test_a_file_that_nobody_may_read_is_listed(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrow(own).chmod(0)
    assert found(own, capsys) == {"data/train/data-00000.arrow": "unreadable"}


def test_a_pipe_in_the_place_of_a_file_does_not_hang_it(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrow(own).unlink()
    os.mkfifo(arrow(own))
    assert found(own, capsys) == {"data/train/data-00000.arrow": "unreadable"}


def test_a_missing_folder_is_all_of_its_files(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = {file.relative_to(own).as_posix() for file in (own / "data").rglob("*") if file.is_file()}
    shutil.rmtree(own / "data")
    assert found(own, capsys) == dict.fromkeys(there, "missing")


def test_many_damages_are_counted(own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(verification, "MOST_LISTED", 2)
    for number in range(5):
        (own / "reports" / f"{number}.txt").write_bytes(b"")
    with pytest.raises(BundleError, match=r"5 extra.*remove"):
        verify(own)
    assert capsys.readouterr().out.splitlines()[2:] == ["and 3 more"]


def test_names_that_no_terminal_takes_are_listed_all_the_same(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.close(os.open(os.fsencode(own / "reports") + b"/\xff\n", os.O_CREAT))
    assert list(found(own, capsys).values()) == ["extra"]


def test_droppings_of_file_managers_are_told_and_passed_over(own: Path) -> None:
    for name in ("data/.DS_Store", "model/Thumbs.db", "model/desktop.ini", "data/train/._data-00000.arrow"):
        (own / name).write_bytes(b"x")
    done = script("run_online_setup.py", "--verify", "--bundle-dir", own)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert "4 hidden files" in done.stderr


def test_what_was_verified_need_not_be_read_again(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr.shared.memory.SETTLED_S", -10)
    verify(own, quick=True)
    verify(own)
    monkeypatch.setattr("asr.shared.bundle.compare_contents", None)
    assert open_bundle(own)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        verify(tmp_path / "none")
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        verify(tmp_path)


@pytest.mark.parametrize("flags", [("--quick",), ("--verify", "--unpack", "x"), ("--pack", "x", "--install-wheels")])
def test_flags_that_do_not_go_together(flags: tuple[str, ...]) -> None:
    done = script("run_online_setup.py", *flags)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


# The project


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, to be damaged."""
    for name in project_files():
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / "project" / name)
    return tmp_path / "project"


@pytest.fixture
def its_bundle(own: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle that was sealed with that copy."""
    with monkeypatch.context() as patched:
        patched.setattr("asr.shared.bundle.list_project", lambda: list_project(project))
        patched.setattr("asr.shared.bundle.half_copied", lambda _: [])
        return sealed_again(own)


def kinds(project: Path, listed: dict) -> dict[str, str]:
    broken, edited = compare_project(listed, project)
    return {**{trouble.name: trouble.kind for trouble in broken}, **dict.fromkeys(edited, "edited")}


def test_a_whole_copy_is_whole(project: Path) -> None:
    listed = list_project(project)
    assert kinds(project, listed) == {}
    assert half_copied(listed, project) == []
    assert {file.split("/")[0] for file in project_files() if "/" in file} == {"asr", "examples"}
    assert [kind for kind in KINDS if not any(project.glob(kind))] == []


def test_line_ends_that_git_changed_are_no_damage(project: Path) -> None:
    listed = list_project(project)
    for name in project_files():
        text = (project / name).read_bytes()
        (project / name).write_bytes(text.replace(b"\n", b"\r\n"))
    assert kinds(project, listed) == {}


def test_a_copy_that_was_cut_off_is_told_from_one_that_was_edited(project: Path) -> None:
    listed = list_project(project)
    whole = (project / "utils.py").read_bytes()
    (project / "utils.py").write_bytes(whole[:3000].rstrip())
    (project / "asr" / "shared" / "text.py").unlink()
    (project / "asr" / "shared" / "cli.py").write_bytes(bytes((project / "asr" / "shared" / "cli.py").stat().st_size))
    (project / "train_offline.py").write_bytes(b"")
    (project / "config.py").write_text("# mine\n" + (ROOT / "config.py").read_text(encoding="utf-8"), encoding="utf-8")
    assert kinds(project, listed) == {
        "utils.py": "shorter",
        "asr/shared/text.py": "missing",
        "asr/shared/cli.py": "altered",
        "train_offline.py": "shorter",
        "config.py": "edited",
    }
    broken = {trouble.name for trouble in half_copied(listed, project)}
    assert broken == {"utils.py", "asr/shared/text.py", "asr/shared/cli.py", "train_offline.py"}


def test_another_version_of_the_project_may_have_other_files(project: Path) -> None:
    """A bundle goes on serving when the project on the box is newer than what sealed it."""
    listed = list_project(project)
    (project / "asr" / "shared" / "text.py").unlink()
    with open(project / "utils.py", "ab") as file:
        file.write(b"# newer\n")
    assert half_copied(listed, project) == []
    assert kinds(project, listed) == {"asr/shared/text.py": "missing", "utils.py": "edited"}


def test_an_offline_script_of_a_half_copied_project_says_so(its_bundle: Path, project: Path) -> None:
    (project / "asr" / "offline" / "parity.py").unlink()
    done = script(str(project / "train_offline.py"), "--bundle-dir", its_bundle, cwd=project)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "the project is incomplete" in line
    assert "parity.py is missing" in line


def test_verify_tells_edits_and_lists_what_is_missing(its_bundle: Path, project: Path) -> None:
    for name in ("config.py", "utils.py"):
        with open(project / name, "ab") as file:
            file.write(b"# mine\n")
    command = (str(project / "run_online_setup.py"), "--verify", "--bundle-dir", its_bundle)
    done = script(*command, cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "note: config.py was edited",
        "warning: utils.py differs: it was edited, or is of another version",
    ]
    (project / "asr" / "offline" / "parity.py").unlink()
    done = script(*command, cwd=project)
    assert done.returncode == 3
    assert done.stdout.splitlines() == ["missing    asr/offline/parity.py: is missing"]


# Underneath


def test_reading_can_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends it at once, not when every file has been read."""
    for number in range(8):
        (tmp_path / str(number)).write_bytes(bytes(4 << 20))
    files, read = [tmp_path / str(number) for number in range(8)], []

    def interrupted(_: Meter, count: int) -> None:
        read.append(count)
        raise KeyboardInterrupt

    monkeypatch.setattr(Meter, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        digests_of(files, "reading", 0)
    assert sum(read) < 32 << 20


def test_progress_stands_on_standard_error_and_only_in_long_work(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter("verifying", 10**9)
    meter.add(10)
    assert capsys.readouterr() == ("", "")
    meter.told -= 60
    meter.add(5 * 10**8)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("verifying:  50% of 1.0 GB")


def test_an_empty_bundle_can_be_compared(tmp_path: Path) -> None:
    assert compare_contents(tmp_path, {}) == []
    (tmp_path / "bundle").mkdir()
    assert seal(tmp_path / "bundle", "x", {}, {}).manifest["files"] == {}


def test_everything_below_asr_makes_the_project():
    """A template, a script or a style that stays behind is missed at 2 a.m. on the box."""
    there = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "asr").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {"asr/offline/page/page.js", "asr/offline/page/page.css"} <= there
    assert there - set(project_files(ROOT)) == set()
