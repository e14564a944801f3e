"""The crossing: what one machine packs is unpacked, verified and used on another, by any user, at any path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import DEMO_CORPUS, ROOT, script

NOBODY = 65534
SHORT = ("--max-steps", 2, "--warmup-steps", 0, "--generation-max-length", 16)
# Spaces, Korean, and what shells, URLs and glob patterns would take for theirs.
NAME = "상자 위의 폴더 #1 100% [새 것] & 'é'"


def as_nobody() -> tuple[str, ...]:
    """Return what makes a command run as another user, or nothing where that cannot be.

    Where Python itself lies in somebody's closed home, the other user may read everything, and write nothing more.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None or os.geteuid() != 0:
        return ()
    user = (setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    look = f"import sys, torch; sys.path.insert(0, {str(ROOT)!r}); import utils; print(sys.version)"
    for prefix in (user, (*user, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")):
        done = subprocess.run([*prefix, sys.executable, "-c", look], capture_output=True, text=True, timeout=60)
        if done.stdout.strip() == sys.version:
            return prefix
    return ()


@pytest.fixture(scope="module")
def other_user() -> tuple[str, ...]:
    return as_nobody()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user may enter; pytest's own is closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="crossing."))
    folder.chmod(0o755)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o777)
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    yield folder
    shutil.rmtree(folder)


def homeless(world: Path) -> dict[str, str]:
    """The environment of a user whose home is not there and cannot be made."""
    (world / "no home").touch()
    return {"HOME": str(world / "no home"), "USER": "", "LOGNAME": ""}


def given_to(other_user: tuple[str, ...], folder: Path) -> Path:
    folder.mkdir(parents=True)
    if other_user:
        os.chown(folder, NOBODY, NOBODY)
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_the_whole_story(mini_bundle: Path, world: Path, other_user: tuple[str, ...]) -> None:
    """Pack, lose a volume to a bad stick, mend it, unpack as another user in another place, verify, train, use."""
    stick, box = world / "stick", given_to(other_user, world / NAME)
    packing = ("run_online_setup.py", "--pack", stick, "--volume-size", "1MB", "--bundle-dir", mini_bundle)
    script(*packing, check=True)
    damaged = stick / "bundle.002.wvol"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)

    where = {"cwd": box, "env": homeless(world), "prefix": other_user}
    unzip = [*other_user, sys.executable, "-m", "zipfile", "-e", str(stick / "project.zip"), str(box)]
    subprocess.run(unzip, check=True)
    project = box / "whisper-offline-training"

    def there(name: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return script(str(project / name), *arguments, check=check, **where)  # type: ignore[arg-type]

    refused = there("run_online_setup.py", "--unpack", stick, check=False)
    assert refused.returncode == 3
    assert len(refused.stderr.splitlines()) == 1
    assert "volume 2 (bundle.002.wvol) is damaged: copy it again" in refused.stderr
    assert there("train_offline.py", check=False).returncode == 3, "what is not whole is not used"

    mended = script(*packing, check=True)
    assert "; 1 of them are new" in mended.stderr
    # What was good is kept on the box: of the stick only what was bad is needed now.
    for volume in stick.glob("bundle.*.wvol"):
        if volume != damaged:
            volume.unlink()
    there("run_online_setup.py", "--unpack", stick)
    bundle = box / "bundle"
    assert (bundle / "manifest.json").stat().st_uid == box.stat().st_uid
    before = snapshot(bundle)

    assert there("run_online_setup.py", "--verify").stdout.startswith("bundle: all ")
    there("train_offline.py", *SHORT)
    assert there("evaluate_model.py", "--generation-max-length", 16).stdout.startswith("test: 4 utterances")
    clip = shutil.copy(next((DEMO_CORPUS / "clips").glob("*test_0000.mp3")), world / "들을 것.mp3")
    assert len(there("inference.py", clip, "--generation-max-length", 16).stdout.splitlines()) == 1
    assert snapshot(bundle) == before


def test_two_users_of_one_bundle_at_once(mini_bundle: Path, world: Path, other_user: tuple[str, ...]) -> None:
    """It belongs to somebody else and is read-only; one of them has no home."""
    bundle = world / "shared bundle"
    shutil.copytree(mini_bundle, bundle)
    for path in [bundle, *bundle.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = snapshot(bundle)
    (world / "home").mkdir()
    users = {
        "owner": ((), {"HOME": str(world / "home")}),
        "guest": (other_user, homeless(world)),
    }

    def train(user: str) -> subprocess.CompletedProcess[str]:
        prefix, env = users[user]
        folder = given_to(prefix, world / user)
        arguments = ("--bundle-dir", bundle, "--output-dir", folder / "runs", *SHORT)
        return script("train_offline.py", *arguments, cwd=folder, env=env, prefix=prefix)

    with ThreadPoolExecutor() as pool:
        for done in pool.map(train, users):
            assert done.returncode == 0, done.stderr
    assert snapshot(bundle) == before
    for user in users:
        assert list((world / user / "runs").glob("*/adapter/adapter_model.safetensors"))
    assert list((world / "home").rglob("whisper-offline-training/verified/*.json")), "what was verified is remembered"


@pytest.mark.parametrize("name", ["-b", "--verify", "묶음 " * 12, "x" * 100 + "/" + "나" * 80 + "/" + "긴 이름 " * 12])
def test_any_name_and_length_of_path(mini_bundle: Path, tmp_path: Path, name: str) -> None:
    bundle, volumes = tmp_path / "new" / name, tmp_path / f"volumes {name}"
    script("run_online_setup.py", "--pack", volumes, "--bundle-dir", mini_bundle, check=True)
    (tmp_path / "new").mkdir()
    command = ("run_online_setup.py", f"--unpack={os.path.relpath(volumes, tmp_path / 'new')}", f"--bundle-dir={name}")
    script(*command, cwd=tmp_path / "new", check=True)
    done = script("run_online_setup.py", "--verify", f"--bundle-dir={name}", cwd=tmp_path / "new", check=True)
    assert done.stdout.startswith(f"{Path(name)}: all ")
    assert snapshot(bundle).keys() == {
        str(bundle / Path(path).relative_to(mini_bundle)) for path in snapshot(mini_bundle)
    }


def test_a_bundle_that_one_may_not_read_is_told_in_words(
    mini_bundle: Path, world: Path, other_user: tuple[str, ...]
) -> None:
    if len(other_user) != 4:
        pytest.skip("needs to become a user who may not read everything")
    bundle = shutil.copytree(mini_bundle, world / "bundle")
    (bundle / "model" / "model.safetensors").chmod(0o600)
    done = script("run_online_setup.py", "--verify", "--bundle-dir", bundle, prefix=other_user, env=homeless(world))
    assert done.returncode == 3
    assert done.stdout == "unreadable model/model.safetensors: cannot be read (Permission denied)\n"
    done = script("train_offline.py", "--bundle-dir", bundle, prefix=other_user, env=homeless(world), cwd=world)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
    (bundle / "manifest.json").chmod(0o600)
    done = script("train_offline.py", "--bundle-dir", bundle, prefix=other_user, env=homeless(world), cwd=world)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
    assert "manifest.json cannot be read (Permission denied)" in done.stderr


def test_a_place_that_one_may_not_write_is_told_in_words(
    mini_bundle: Path, world: Path, other_user: tuple[str, ...]
) -> None:
    if not other_user:
        pytest.skip("needs to become another user")
    script("run_online_setup.py", "--pack", world / "stick", "--bundle-dir", mini_bundle, check=True)
    for flags in (("--unpack", world / "stick"), ("--pack", world / "another", "--bundle-dir", world / "copy")):
        if flags[0] == "--pack":
            shutil.copytree(mini_bundle, world / "copy")
        done = script("run_online_setup.py", *flags, prefix=other_user, env=homeless(world), cwd=world)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "Permission denied" in line
