"""The bundle: its manifest vouches for every byte, and whatever is wrong is told by the name of the file."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest

from asr.shared import bundle as bundle_module
from asr.shared import memory
from asr.shared.bundle import Bundle, open_bundle, seal, unseal
from tests.conftest import ROOT
from utils import BundleError, UserError

BASE = "openai/whisper-small"
CONFIG = {"model_name_or_path": BASE, "language": "Korean", "task": "transcribe", "num_proc": 2}
DATA = {"rows_read": 3, "splits": {"train": {"clips": 2, "hours": 0.01}}}
FILES = {
    "data/dataset_dict.json": b'{"splits": ["train"]}',
    "data/train/data-00000.arrow": bytes(range(256)) * 16,
    "model/config.json": b'{"model_type": "whisper"}',
    "model/model.safetensors": random.Random(5).randbytes(3000),
    "reports/빠진 것.csv": "이유\n".encode(),
    "reports/empty.txt": b"",
}
EVERY_FILE = [*FILES, "manifest.json", "manifest.sha256"]


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is remembered of the bundles here stays here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small sealed bundle; treat it as read-only."""
    return seal(filled(tmp_path_factory.mktemp("sealed") / "bundle"), BASE, CONFIG, DATA)


@pytest.fixture
def own(sealed: Bundle, tmp_path: Path) -> Path:
    """A copy of the sealed bundle, to be damaged."""
    return shutil.copytree(sealed.path, tmp_path / "bundle")


def filled(path: Path) -> Path:
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def assert_refused(path: Path, *words: str) -> None:
    with pytest.raises(BundleError) as raised:
        open_bundle(path)
    message = str(raised.value)
    assert raised.value.exit_code == 3
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_what_was_sealed_is_what_is_opened(sealed: Bundle) -> None:
    opened = open_bundle(sealed.path)
    assert opened == sealed
    assert opened.manifest["config"] == CONFIG
    assert opened.manifest["data"] == DATA
    assert (opened.base_name, opened.language, opened.task) == (BASE, "Korean", "transcribe")
    assert (opened.data_dir, opened.model_dir) == (sealed.path / "data", sealed.path / "model")


def test_manifest_lists_every_file_with_size_and_sha256(sealed: Bundle) -> None:
    expected = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in FILES.items()
    }
    assert sealed.manifest["files"] == expected


def test_seal_is_in_the_format_of_sha256sum(sealed: Bundle) -> None:
    """`sha256sum -c manifest.sha256` checks it without any Python."""
    digest = hashlib.sha256((sealed.path / "manifest.json").read_bytes()).hexdigest()
    assert (sealed.path / "manifest.sha256").read_text() == f"{digest}  manifest.json\n"
    assert sealed.manifest_sha256 == digest


def test_same_content_gives_the_same_fingerprint(sealed: Bundle, tmp_path: Path) -> None:
    again = seal(filled(tmp_path / "elsewhere"), BASE, CONFIG, DATA)
    assert again.manifest_sha256 == sealed.manifest_sha256


def test_a_bundle_may_be_moved(own: Path, sealed: Bundle, tmp_path: Path) -> None:
    moved = own.rename(tmp_path / "다른 곳")
    assert open_bundle(moved).manifest == sealed.manifest


def test_a_flipped_byte_anywhere_is_found_and_named(own: Path) -> None:
    """Every position of the two manifests' beginnings and ends, and random ones of every file."""
    rng = random.Random(11)
    for name in EVERY_FILE:
        file = own / name
        whole = file.read_bytes()
        if not whole:
            continue
        positions = {0, len(whole) // 2, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(40))}
        for position in positions:
            damaged = bytearray(whole)
            damaged[position] ^= rng.randrange(1, 256)
            file.write_bytes(damaged)
            assert_refused(own, str(own / name) if name in FILES else name)
        file.write_bytes(whole)
    assert open_bundle(own)


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_missing_file_is_named(own: Path, name: str) -> None:
    (own / name).unlink()
    assert_refused(own, str(own / name), "missing")


@pytest.mark.parametrize("name", [name for name, content in FILES.items() if content])
def test_a_file_that_was_cut_short_or_went_on_is_named_with_both_sizes(own: Path, name: str) -> None:
    whole = (own / name).read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"\x00"):
        (own / name).write_bytes(content)
        assert_refused(own, str(own / name), f"{len(content):,} bytes", f"{len(whole):,}")


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256"])
def test_a_manifest_that_was_cut_short_is_told(own: Path, name: str) -> None:
    whole = (own / name).read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        (own / name).write_bytes(whole[:length])
        assert_refused(own, name, "damaged")


def test_an_empty_file_that_got_content_is_named(own: Path) -> None:
    (own / "reports/empty.txt").write_bytes(b"x")
    assert_refused(own, str(own / "reports/empty.txt"))


def test_a_folder_in_the_place_of_a_file_is_named(own: Path) -> None:
    file = own / "model/config.json"
    file.unlink()
    file.mkdir()
    assert_refused(own, str(file))


def test_several_damages_are_counted(own: Path) -> None:
    (own / "model/config.json").unlink()
    (own / "model/model.safetensors").write_bytes(b"")
    assert_refused(own, str(own / "model/config.json"), "1 more")


def test_a_bundle_without_manifest_is_unfinished(tmp_path: Path) -> None:
    path = filled(tmp_path / "bundle")
    assert_refused(path, str(path / "manifest.json"), "did not finish")


def test_unseal_makes_it_unfinished_and_keeps_the_rest(own: Path) -> None:
    unseal(own)
    assert_refused(own, "did not finish")
    left = {file.relative_to(own).as_posix() for file in own.rglob("*") if file.is_file()}
    assert left == {*FILES, "manifest.previous.json"}
    unseal(own)
    assert json.loads((own / "manifest.previous.json").read_text(encoding="utf-8"))["files"].keys() == set(FILES)
    unseal(own / "no such folder")


def test_sealing_again_covers_what_changed(own: Path, sealed: Bundle) -> None:
    unseal(own)
    (own / "model/config.json").write_bytes(b"{}")
    again = seal(own, BASE, CONFIG, DATA)
    assert again.manifest["files"]["model/config.json"]["size"] == 2
    assert again.manifest_sha256 != sealed.manifest_sha256


def test_a_file_called_like_the_manifest_is_sealed_too_where_it_is_not_the_manifest(tmp_path: Path) -> None:
    path = filled(tmp_path / "bundle")
    (path / "model" / "manifest.json").write_text("{}")
    assert "model/manifest.json" in seal(path, BASE, CONFIG, DATA).manifest["files"]


def test_a_manifest_of_another_format_is_told(own: Path) -> None:
    manifest = json.loads((own / "manifest.json").read_text(encoding="utf-8"))
    content = json.dumps(manifest | {"format": 99}).encode()
    (own / "manifest.json").write_bytes(content)
    (own / "manifest.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  manifest.json\n")
    assert_refused(own, "format 99")


def test_no_folder_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    for path in (tmp_path / "none", tmp_path / "a file"):
        with pytest.raises(UserError, match="no such folder") as raised:
            open_bundle(path)
        assert raised.value.exit_code == 2
        assert str(path) in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"files": 3}', b"[" * 10_000])
def test_a_manifest_that_is_none_is_told_even_if_its_seal_fits(own: Path, content: bytes) -> None:
    (own / "manifest.json").write_bytes(content)
    (own / "manifest.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  manifest.json\n")
    assert_refused(own, "manifest.json")


def test_the_manifest_covers_the_project(sealed: Bundle) -> None:
    project = sealed.manifest["project"]
    assert {"utils.py", "config.py", "requirements.txt", "asr/shared/bundle.py", "README.md"} <= project.keys()
    assert {"train_offline.py", "asr/online/report.html.j2", "examples/database.toml"} <= project.keys()
    assert [name for name in project if name.startswith(("tests/", "demo/", "bundle/", "runs/", "."))] == []
    text = (ROOT / "utils.py").read_bytes().replace(b"\r\n", b"\n")
    assert project["utils.py"] == {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}


def test_what_is_left_of_another_model_is_refused(own: Path) -> None:
    """transformers would take model.safetensors before the index of a model in several files."""
    (own / "model/pytorch_model.bin").write_bytes(b"x")
    assert_refused(own, str(own / "model/pytorch_model.bin"), "not in the manifest")


def test_what_lies_elsewhere_besides_does_no_harm(own: Path) -> None:
    for name in ("data/train/data-00007.arrow", "model/.DS_Store", "model/._model.safetensors", "notes.txt"):
        (own / name).write_bytes(b"x")
    assert open_bundle(own)


def test_droppings_of_a_file_manager_are_not_sealed(tmp_path: Path) -> None:
    path = filled(tmp_path / "bundle")
    for name in (
        ".DS_Store",
        "data/._dataset_dict.json",
        "model/Thumbs.db",
        "reports/.data.json.12.tmp",
        "wheels/.new/a.whl",
    ):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x")
    assert seal(path, BASE, CONFIG, DATA).manifest["files"].keys() == set(FILES)


# The memory of what was verified


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of files that were read in full, a list each time; and files count as settled at once."""
    found: list[list[str]] = []
    compare = bundle_module.compare_contents

    def listening(root: Path, listed: dict, *more: str) -> list:
        found.append(sorted(listed))
        return compare(root, listed, *more)

    monkeypatch.setattr(bundle_module, "compare_contents", listening)
    monkeypatch.setattr(memory, "SETTLED_S", -10)
    return found


def test_a_bundle_is_read_in_full_once(own: Path, reads: list) -> None:
    for _ in range(3):
        open_bundle(own)
    assert reads == [sorted(FILES)]


def test_sealing_counts_as_reading(tmp_path: Path, reads: list) -> None:
    seal(filled(tmp_path / "bundle"), BASE, CONFIG, DATA)
    assert reads == []


def test_a_file_that_was_touched_is_read_again(own: Path, reads: list) -> None:
    open_bundle(own)
    os.utime(own / "model/config.json")
    open_bundle(own)
    assert reads == [sorted(FILES), ["model/config.json"]]


def test_a_damage_behind_the_memorys_back_is_found(own: Path, reads: list) -> None:
    """The same size, and the time of the last change put back, as a copying tool does."""
    open_bundle(own)
    file = own / "model/model.safetensors"
    state, content = file.stat(), bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert_refused(own, str(file), "SHA-256")
    assert len(reads) == 2
    assert_refused(own, str(file), "SHA-256")


def test_what_changed_only_now_is_not_remembered(own: Path, reads: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may change once more within what the file system's clock can tell apart."""
    monkeypatch.setattr(memory, "SETTLED_S", 100)
    open_bundle(own)
    open_bundle(own)
    assert reads == [sorted(FILES)] * 2


def test_another_copy_of_the_bundle_has_a_memory_of_its_own(own: Path, reads: list, tmp_path: Path) -> None:
    open_bundle(own)
    open_bundle(shutil.copytree(own, tmp_path / "another"))
    assert reads == [sorted(FILES)] * 2


def test_one_bundle_by_two_paths_is_read_once(own: Path, reads: list, tmp_path: Path) -> None:
    open_bundle(own)
    (tmp_path / "link").symlink_to(own)
    open_bundle(tmp_path / "link")
    assert reads == [sorted(FILES)]


GARBAGE = [
    b"",
    b"[]",
    b'{"files": 3}',
    b'{"files": {"a": 1}}',
    b'{"files": {"model/config.json": [2]}}',
    b"\xff",
    b"[" * 10**5,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_a_broken_memory_means_reading_again(own: Path, reads: list, own_memory: Path, garbage: bytes) -> None:
    open_bundle(own)
    (note,) = own_memory.rglob("*.json")
    note.write_bytes(garbage)
    open_bundle(own)
    open_bundle(own)
    assert reads == [sorted(FILES)] * 2


def test_without_a_cache_folder_the_temporary_one_serves(own: Path, reads: list, own_memory: Path) -> None:
    """HOME may be missing or unwritable."""
    own_memory.write_bytes(b"a file where the folder should be")
    open_bundle(own)
    open_bundle(own)
    assert reads == [sorted(FILES)]
    (folder,) = own.parent.glob("whisper-offline-training-*")
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("planted", ["link", "open to all", "file"])
def test_without_any_place_the_bundle_is_read_each_time(
    own: Path, reads: list, own_memory: Path, tmp_path: Path, planted: str
) -> None:
    """Anyone may plant something in the folder for temporary files."""
    own_memory.write_bytes(b"")
    folder = tmp_path / f"whisper-offline-training-{os.getuid()}"
    if planted == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif planted == "file":
        folder.write_bytes(b"")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    open_bundle(own)
    open_bundle(own)
    assert reads == [sorted(FILES)] * 2


def test_the_memory_does_not_grow_without_end(own_memory: Path, tmp_path: Path) -> None:
    for number in range(memory.MOST_KEPT + 5):
        memory.remember(tmp_path / str(number), "0", {})
    assert len(list(own_memory.rglob("*.json"))) == memory.MOST_KEPT
