"""Volumes: what was packed is what is unpacked, in any number of goes; what is damaged is named and never used."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import namedtuple
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.shared import packing, unpacking
from asr.shared.bundle import BundleError, open_bundle, read_manifest, seal
from asr.shared.checksums import Trouble
from asr.shared.packing import Archive, pack
from asr.shared.project import project_files
from asr.shared.unpacking import unpack
from asr.shared.volumes import is_safe, volume_size
from tests.conftest import ROOT, script
from utils import UserError

REPEATABLE = settings(derandomize=True, deadline=None, database=None)
RANDOM = random.Random(8)
FILES = {
    "data/dataset_dict.json": b'{"splits": ["train"]}',
    "data/train/data-00000.arrow": RANDOM.randbytes(1_700_000),
    "data/train/data-00001.arrow": RANDOM.randbytes(900_000),
    "data/train/state.json": b"{}",
    "model/config.json": b'{"model_type": "whisper"}',
    "model/model.safetensors": RANDOM.randbytes(1_200_000),
    "reports/빠진 것.csv": "이유\n".encode(),
    "reports/empty.txt": b"",
    "wheels/" + "long_name" * 20 + ".whl": RANDOM.randbytes(512),
}
DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed bundle of 3.8 MB; treat it as read-only."""
    return made(tmp_path_factory.mktemp("sealed") / "bundle", FILES)


@pytest.fixture(scope="module")
def packed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its four volumes; treat them as read-only."""
    folder = tmp_path_factory.mktemp("packed") / "volumes"
    pack(bundle, folder, "1MB")
    return folder


@pytest.fixture
def own(packed: Path, tmp_path: Path) -> Path:
    """A copy of the volumes, to be damaged."""
    return shutil.copytree(packed, tmp_path / "stick")


def made(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    seal(path, "base", {"language": "Korean", "task": "transcribe"}, {})
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def volumes(folder: Path) -> list[Path]:
    return sorted(folder.glob("bundle.*.wvol"))


def flip(file: Path, position: int = 1000) -> None:
    damaged = bytearray(file.read_bytes())
    damaged[position] ^= 1
    file.write_bytes(damaged)


def refused(folder: Path, bundle_dir: Path, *words: str) -> str:
    with pytest.raises(BundleError) as raised:
        unpack(folder, bundle_dir)
    message = str(raised.value)
    assert raised.value.exit_code == 3
    assert "\n" not in message
    assert [word for word in words if word not in message] == []
    return message


# Packing


def test_no_volume_is_larger_than_asked_for(packed: Path) -> None:
    sizes = [file.stat().st_size for file in volumes(packed)]
    assert [file.name for file in volumes(packed)] == [f"bundle.{n:03}.wvol" for n in range(1, 5)]
    assert sizes[:-1] == [10**6] * 3
    assert 0 < sizes[-1] <= 10**6


def test_the_volumes_are_a_tar_archive(bundle: Path, packed: Path) -> None:
    """Whoever has nothing of ours can open them too."""
    whole = b"".join(file.read_bytes() for file in volumes(packed))
    with tarfile.open(fileobj=BytesIO(whole), mode="r:") as archive:
        members = {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isfile()}  # type: ignore[union-attr]
    assert members == content(bundle)


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs sha256sum")
def test_checksums_are_in_the_format_of_sha256sum(packed: Path) -> None:
    done = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=packed, capture_output=True, text=True)
    assert done.returncode == 0
    assert set(done.stdout.split()) - {"OK"} == {f"{file.name}:" for file in packed.iterdir()} - {"SHA256SUMS:"}


def test_the_project_goes_with_them_in_a_form_that_any_system_opens(packed: Path) -> None:
    with zipfile.ZipFile(packed / "project.zip") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        text = archive.read("whisper-offline-training/utils.py")
    assert names == [f"whisper-offline-training/{name}" for name in project_files()]
    assert text == (ROOT / "utils.py").read_bytes()


def test_packing_twice_makes_the_same_bytes(bundle: Path, packed: Path, tmp_path: Path) -> None:
    pack(bundle, tmp_path / "again", "1MB")
    assert content(tmp_path / "again") == content(packed)


def test_volumes_that_are_whole_are_not_written_again(bundle: Path, own: Path, packed: Path) -> None:
    flip(volumes(own)[1])
    volumes(own)[3].unlink()
    before = {file.name: file.stat().st_mtime_ns for file in volumes(own)}
    pack(bundle, own, "1MB")
    after = {file.name: file.stat().st_mtime_ns for file in volumes(own)}
    assert content(own) == content(packed)
    assert [name for name in after if after[name] == before.get(name)] == ["bundle.001.wvol", "bundle.003.wvol"]


def test_packing_that_was_broken_off_goes_on(bundle: Path, packed: Path, tmp_path: Path, monkeypatch) -> None:
    read, calls = Archive.read, []

    def breaking(self: Archive, begin: int, end: int):
        calls.append(begin)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, begin, end)

    with monkeypatch.context() as patched:
        patched.setattr(Archive, "read", breaking)
        with pytest.raises(KeyboardInterrupt):
            pack(bundle, tmp_path / "stick", "1MB")
    left = content(tmp_path / "stick")
    assert left.keys() == {"bundle.001.wvol", "bundle.002.wvol"}, "no half volume, and no index that lists what is not"
    pack(bundle, tmp_path / "stick", "1MB")
    assert content(tmp_path / "stick") == content(packed)


def test_volumes_of_an_earlier_packing_go_and_other_files_stay(bundle: Path, own: Path) -> None:
    (own / "bundle.009.wvol").write_bytes(b"x")
    (own / "사진.jpg").write_bytes(b"x")
    pack(bundle, own, "2MB")
    assert [file.name for file in volumes(own)] == ["bundle.001.wvol", "bundle.002.wvol"]
    assert (own / "사진.jpg").exists()


def test_a_damaged_bundle_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(bundle, tmp_path / "bundle")
    flip(broken / "model" / "model.safetensors")
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        pack(broken, tmp_path / "stick", "1MB")
    assert not (tmp_path / "stick").exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(bundle: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**9, 0, 3 * 10**6))
    with pytest.raises(UserError, match=r"4\.8 MB, and 3\.0 MB are free"):
        pack(bundle, tmp_path / "stick", "1MB")
    assert list((tmp_path / "stick").iterdir()) == []


def test_volumes_cannot_go_into_the_bundle(bundle: Path) -> None:
    for folder in (bundle, bundle / "wheels" / "stick"):
        with pytest.raises(UserError, match="lies in the bundle"):
            pack(bundle, folder, "1MB")


def test_a_full_disk_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs a device that is always full")
    with (
        pytest.raises(UserError, match="the disk is full"),
        packing.told_in_words("--pack"),
        open("/dev/full", "wb") as full,
    ):
        full.write(bytes(10**6))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1MB", 10**6), ("700MB", 7 * 10**8), ("700 mb", 7 * 10**8), ("25GB", 25 * 10**9), ("4.5GB", 45 * 10**8),
        ("2000KB", 2 * 10**6), ("4GB", 2**32 - 1), ("4 gb", 2**32 - 1), ("1TB", 10**12),
    ],
)  # fmt: skip
def test_sizes_as_they_stand_on_a_stick(text: str, size: int) -> None:
    assert volume_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "MB", "0MB", "999KB", "0.5MB", "-4GB", "4", "4G", "4GiB", "4GB4", "nanGB", "1e3MB"]
)
def test_what_is_no_size_is_the_users_error(text: str) -> None:
    with pytest.raises(UserError, match="at least 1MB"):
        volume_size(text)


@given(st.data())
@settings(REPEATABLE, max_examples=60)
def test_any_stretch_of_the_archive_can_be_read(bundle: Path, packed: Path, data: st.DataObject) -> None:
    """Headers, contents and the zeros between them, from anywhere to anywhere."""
    archive = Archive(read_manifest(bundle))
    edges = sorted(
        {edge for header, piece in archive.placed for edge in (piece.begin - len(header), piece.begin, piece.end)}
    )
    near = st.builds(
        lambda edge, more: min(max(edge + more, 0), archive.length), st.sampled_from(edges), st.integers(-600, 600)
    )
    begin, end = sorted([data.draw(near), data.draw(near | st.integers(0, archive.length))])
    whole = b"".join(file.read_bytes() for file in volumes(packed))
    assert len(whole) == archive.length
    assert b"".join(archive.read(begin, end)) == whole[begin:end]


# Unpacking


def test_what_was_packed_comes_out(bundle: Path, packed: Path, tmp_path: Path) -> None:
    unpack(packed, tmp_path / "새 곳" / "내 묶음")
    assert content(tmp_path / "새 곳" / "내 묶음") == content(bundle)
    assert not (tmp_path / "새 곳" / "내 묶음" / ".unpacking").exists()
    assert open_bundle(tmp_path / "새 곳" / "내 묶음")


def test_a_damaged_volume_is_named_and_the_rest_is_kept(bundle: Path, own: Path, packed: Path, tmp_path: Path) -> None:
    flip(volumes(own)[2])
    message = refused(own, tmp_path / "bundle", "volume 3 (bundle.003.wvol) is damaged", "copy it again")
    assert "volume 1" not in message
    assert not (tmp_path / "bundle" / "manifest.json").exists(), "nothing that looks like a bundle"
    assert not (tmp_path / "bundle" / "data").exists()
    # Only the third is needed now, wherever the others are.
    for file in volumes(own):
        file.unlink()
    shutil.copy(packed / "bundle.003.wvol", own)
    unpack(own, tmp_path / "bundle")
    assert content(tmp_path / "bundle") == content(bundle)


def test_volumes_may_come_a_few_at_a_time(bundle: Path, own: Path, packed: Path, tmp_path: Path) -> None:
    """As on discs that are put in one after the other."""
    for file in volumes(own):
        file.unlink()
    for number in (2, 1, 4):
        shutil.copy(volumes(packed)[number - 1], own)
        refused(own, tmp_path / "bundle", "volume 3 (bundle.003.wvol) is missing")
        (own / f"bundle.00{number}.wvol").unlink()
    shutil.copy(volumes(packed)[2], own)
    unpack(own, tmp_path / "bundle")
    assert content(tmp_path / "bundle") == content(bundle)


@pytest.mark.parametrize("damage", ["cut", "empty", "longer", "folder", "swapped"])
def test_volumes_that_are_not_what_they_were(own: Path, tmp_path: Path, damage: str) -> None:
    second = volumes(own)[1]
    if damage == "cut":
        os.truncate(second, 5000)
    elif damage == "empty":
        second.write_bytes(b"")
    elif damage == "longer":
        with open(second, "ab") as file:
            file.write(b"x")
    elif damage == "folder":
        second.unlink()
        second.mkdir()
    else:
        shutil.copy(volumes(own)[2], second)
    refused(own, tmp_path / "bundle", "volume 2 (bundle.002.wvol) is ")


def test_damage_anywhere_is_found(own: Path, bundle: Path, tmp_path: Path) -> None:
    """Bits flipped in any file of the folder; what comes out is the bundle or nothing."""
    rng = random.Random(6)
    files = sorted(own.iterdir())
    for _ in range(40):
        file = rng.choice(files)
        whole = file.read_bytes()
        flip(file, rng.randrange(len(whole)))
        target = tmp_path / "bundle"
        try:
            unpack(own, target)
        except (BundleError, UserError):
            assert not (target / "manifest.json").exists()
        else:
            assert content(target) == content(bundle)
            assert file.name in ("project.zip", "SHA256SUMS")
        shutil.rmtree(target, ignore_errors=True)
        file.write_bytes(whole)


@pytest.mark.parametrize("name", ["index.json", "SHA256SUMS"])
def test_a_list_that_is_missing_or_cut_short_is_told(own: Path, tmp_path: Path, name: str) -> None:
    os.truncate(own / name, 70 if name == "SHA256SUMS" else 500)
    refused(own, tmp_path / "bundle", name, "copy")
    (own / name).unlink()
    refused(own, tmp_path / "bundle", name, "copy it again")


def test_a_folder_without_volumes_is_the_users_error(bundle: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "none", bundle):
        with pytest.raises(UserError, match=r"there (is no such folder|are no volumes)"):
            unpack(folder, tmp_path / "bundle")


def test_a_damaged_project_archive_is_told(own: Path, tmp_path: Path) -> None:
    flip(own / "project.zip")
    done = script("run_online_setup.py", "--unpack", own, "--bundle-dir", tmp_path / "bundle", check=True)
    assert "project.zip is damaged" in done.stderr


def test_unpacking_again_does_nothing(packed: Path, tmp_path: Path) -> None:
    unpack(packed, tmp_path / "bundle")
    before = {file: file.stat().st_ino for file in (tmp_path / "bundle").rglob("*")}
    unpack(packed, tmp_path / "bundle")
    assert {file: file.stat().st_ino for file in (tmp_path / "bundle").rglob("*")} == before


def test_a_damaged_bundle_is_mended_from_the_volumes_that_hold_the_damage(
    bundle: Path, packed: Path, own: Path, tmp_path: Path
) -> None:
    unpack(packed, tmp_path / "bundle")
    flip(tmp_path / "bundle" / "data" / "train" / "data-00001.arrow")
    (tmp_path / "bundle" / "model" / "extra.bin").write_bytes(b"x")
    for name in ("bundle.001.wvol", "bundle.002.wvol"):
        (own / name).unlink()
    unpack(own, tmp_path / "bundle")
    assert content(tmp_path / "bundle") == content(bundle)


def test_a_second_setup_needs_only_the_volumes_of_what_changed(packed: Path, tmp_path: Path) -> None:
    unpack(packed, tmp_path / "box")
    more = {name: what for name, what in FILES.items() if not name.startswith("wheels")}
    more["data/train/data-00002.arrow"] = RANDOM.randbytes(700_000)
    new = made(tmp_path / "new", more)
    pack(new, tmp_path / "stick", "1MB")
    for name in ("bundle.001.wvol", "bundle.002.wvol"):
        (tmp_path / "stick" / name).unlink()
    unpack(tmp_path / "stick", tmp_path / "box")
    assert content(tmp_path / "box") == content(new)
    assert not (tmp_path / "box" / "wheels").exists()


def test_the_old_bundle_stays_whole_until_the_new_one_is(bundle: Path, packed: Path, own: Path, tmp_path: Path) -> None:
    old = made(tmp_path / "bundle", {"data/a.arrow": b"old", "model/config.json": b"{}"})
    flip(volumes(own)[0])
    refused(own, old, "volume 1")
    assert open_bundle(old).manifest["files"].keys() == {"data/a.arrow", "model/config.json"}
    unpack(packed, old)
    assert content(old) == content(bundle)


@pytest.mark.parametrize("at", range(1, 9))
def test_broken_off_while_files_take_their_places_it_goes_on(bundle, packed, tmp_path, monkeypatch, at: int) -> None:
    made(tmp_path / "bundle", {"data/a.arrow": b"old", "model/config.json": b"{}"})
    replace, calls = os.replace, []

    def breaking(source: Path, target: Path) -> None:
        if ".unpacking" in str(source) or str(target).endswith(".old"):
            calls.append(target)
            if Path(source).name != "notes.json" and ".tmp" not in str(source) and len(moves(calls)) == at:
                raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", breaking)
        with pytest.raises(KeyboardInterrupt):
            unpack(packed, tmp_path / "bundle")
    unpack(packed, tmp_path / "bundle")
    assert content(tmp_path / "bundle") == content(bundle)


def moves(calls: list[Path]) -> list[Path]:
    return [target for target in calls if Path(target).name != "notes.json"]


def test_what_is_no_bundle_is_left_alone(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "home" / "data").mkdir(parents=True)
    (tmp_path / "home" / "data" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="no finished bundle"):
        unpack(packed, tmp_path / "home")
    with pytest.raises(UserError, match="is a file"):
        unpack(packed, tmp_path / "home" / "data" / "mine.txt")
    assert content(tmp_path / "home") == {"data/mine.txt": b"precious"}


def test_a_full_disk_is_told_before_anything_is_written(packed: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**9, 0, 10**6))
    with pytest.raises(UserError, match=r"4\.8 MB more at .*1\.0 MB are free"):
        unpack(packed, tmp_path / "bundle")


def test_what_the_disk_garbled_is_restored_the_next_time(bundle, packed, tmp_path, monkeypatch) -> None:
    """Written well, read back otherwise: found by the comparison at the end."""
    restore = unpacking._restore

    def garbling(folder: Path, staging: unpacking.Staging) -> None:
        restore(folder, staging)
        flip(staging.path / "content" / "model" / "model.safetensors")

    with monkeypatch.context() as patched:
        patched.setattr(unpacking, "_restore", garbling)
        refused(packed, tmp_path / "bundle", "model/model.safetensors", "after unpacking")
    unpack(packed, tmp_path / "bundle")
    assert content(tmp_path / "bundle") == content(bundle)


def test_a_project_that_is_only_half_there_is_told_after_unpacking(packed, bundle, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("asr.shared.bundle.half_copied", lambda _: [Trouble("asr/x.py", "missing", "is missing")])
    refused(packed, tmp_path / "bundle", "the project is incomplete", "x.py is missing")
    assert content(tmp_path / "bundle") == content(bundle)


def test_a_file_of_the_old_bundle_is_never_written_into(packed, bundle, tmp_path, monkeypatch) -> None:
    """What is the same is linked, not copied; should it turn out bad, the link goes, not the old content."""
    unpack(packed, tmp_path / "bundle")
    flip(tmp_path / "bundle" / "data" / "train" / "data-00001.arrow")
    kept = tmp_path / "bundle" / "model" / "model.safetensors"
    before = kept.read_bytes()
    bad = [Trouble("model/model.safetensors", "altered", "is garbled")]
    with monkeypatch.context() as patched:
        patched.setattr("asr.shared.staging.compare_contents", lambda *_: bad)
        refused(packed, tmp_path / "bundle", "is garbled after unpacking")
    assert not (tmp_path / "bundle" / ".unpacking" / "content" / "model" / "model.safetensors").exists()
    assert kept.read_bytes() == before
    unpack(packed, tmp_path / "bundle")
    assert content(tmp_path / "bundle") == content(bundle)


def forged(folder: Path, **changes: object) -> None:
    """Change the index, with checksums that fit."""
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    text = json.dumps({**index, **changes})
    (folder / "index.json").write_text(text, encoding="utf-8")
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    sums = [line for line in sums if not line.endswith(" index.json")]
    sums.append(f"{hashlib.sha256(text.encode()).hexdigest()}  index.json")
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n")


OUTSIDE = [
    "../evil", "data/../../evil", "/etc/evil", "data//evil", "data/./evil", "C:/evil", "data/C:evil", "data\\..\\evil",
    "\\\\host\\evil", "evil", "tests/evil", ".unpacking/evil", "data/", "", "data/\0evil", "data/a\nb", "data/con.txt",
    "data/LPT1", "data/evil.", "data/evil ", "data/a?", "model", "manifest.json/evil", "~/evil",
    "data/../manifest.json",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_elsewhere_is_refused(own: Path, tmp_path: Path, name: str) -> None:
    assert not is_safe(name)
    index = json.loads((own / "index.json").read_text(encoding="utf-8"))
    index["pieces"][0]["name"] = name
    forged(own, pieces=index["pieces"])
    refused(own, tmp_path / "in" / "bundle", "leads out of the bundle")
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize(
    "name", ["data/a", "model/가 나 (1).json", "wheels/torch-2.13.0+cu130-cp311.whl", "data/..a", "data/a..b"]
)
def test_plain_names_pass(name: str) -> None:
    assert is_safe(name)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2}, {"pieces": []}, {"pieces": 3}, {"volumes": []}, {"volumes": [{}]}, {"manifest_sha256": "0"},
        {"pieces": [{"name": "data/a", "begin": 0, "size": 1, "sha256": ""}]}, {"volumes": None},
    ],
)  # fmt: skip
def test_an_index_that_makes_no_sense_is_refused(own: Path, tmp_path: Path, changes: dict) -> None:
    forged(own, **changes)
    refused(own, tmp_path / "bundle", "index.json")


@pytest.mark.parametrize(
    ("key", "value"), [("begin", -1), ("begin", "0"), ("size", 10**9), ("begin", 0.5), ("name", 3), ("size", True)]
)
@pytest.mark.parametrize("which", ["pieces", "volumes"])
def test_numbers_that_make_no_sense_are_refused(own: Path, tmp_path: Path, which: str, key: str, value: object) -> None:
    listed = json.loads((own / "index.json").read_text(encoding="utf-8"))[which]
    listed[1][key] = value
    forged(own, **{which: listed})
    refused(own, tmp_path / "bundle", "index.json")


def test_a_volume_may_not_have_any_name(own: Path, tmp_path: Path) -> None:
    listed = json.loads((own / "index.json").read_text(encoding="utf-8"))["volumes"]
    listed[0]["name"] = "../../bundle.001.wvol"
    forged(own, volumes=listed)
    refused(own, tmp_path / "bundle", "another name")


def test_verifying_packing_and_unpacking_need_the_standard_library_alone(bundle: Path, tmp_path: Path) -> None:
    """The box has no packages yet when the first volume arrives."""
    program = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
assert not any("site-packages" in place for place in sys.path)
sys.argv = ["run_online_setup.py", *sys.argv[1:]]
runpy.run_path({str(ROOT / "run_online_setup.py")!r}, run_name="__main__")
"""
    for arguments in (
        ("--pack", tmp_path / "stick", "--volume-size", "2MB", "--bundle-dir", bundle),
        ("--unpack", tmp_path / "stick", "--bundle-dir", tmp_path / "bundle"),
        ("--verify", "--bundle-dir", tmp_path / "bundle"),
    ):
        command = [sys.executable, "-I", "-S", "-c", program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert content(tmp_path / "bundle") == content(bundle)
