"""The bundle: its manifest vouches for every byte, and whatever is wrong is told by the name of the file."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest

from asr.shared.bundle import Bundle, open_bundle, seal, unseal
from utils import BundleError, UserError

BASE = "openai/whisper-small"
CONFIG = {"model_name_or_path": BASE, "language": "Korean", "task": "transcribe", "num_proc": 2}
DATA = {"rows_read": 3, "splits": {"train": {"clips": 2, "hours": 0.01}}}
FILES = {
    "data/dataset_dict.json": b'{"splits": ["train"]}',
    "data/train/data-00000-of-00001.arrow": bytes(range(256)) * 16,
    "model/config.json": b'{"model_type": "whisper"}',
    "model/model.safetensors": random.Random(5).randbytes(3000),
    "reports/빠진 것.csv": "이유\n".encode(),
    "reports/empty.txt": b"",
}
EVERY_FILE = [*FILES, "manifest.json", "manifest.sha256"]


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
    assert {file.relative_to(own).as_posix() for file in own.rglob("*") if file.is_file()} == set(FILES)
    unseal(own)
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
