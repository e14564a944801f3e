"""Sealing: the two halves may be brought one by one, and are sealed only when they belong together."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import pytest

import download_data
import download_model
from asr.online.sealing import seal_if_complete, unseal_data
from asr.shared.bundle import open_bundle, unseal
from asr.shared.cli import parse
from config import Bundle, DownloadData, DownloadModel, OnlineSetup, Wheels
from run_online_setup import main
from tests.conftest import DEMO_CORPUS, script
from utils import BundleError, UserError, log


def bring(kind: type, *flags: object) -> None:
    """Do what download_model.py or download_data.py does."""
    config, _ = parse(kind, [str(flag) for flag in flags])
    (download_model if kind is DownloadModel else download_data).main(config)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", logger=log.name)
    return caplog


def test_halves_that_come_one_by_one_make_a_bundle(mini_model: Path, mini_release: Path, tmp_path: Path, said):
    bundle = ("--bundle-dir", tmp_path / "bundle")
    bring(DownloadModel, "--model-name-or-path", mini_model, *bundle)
    assert "next: python download_data.py" in said.text
    assert not (tmp_path / "bundle" / "manifest.json").exists()
    bring(DownloadData, "--common-voice", mini_release, "--num-proc", 1, *bundle)
    assert "next: copy it" in said.text
    assert "reports/data.json" in (sealed := open_bundle(tmp_path / "bundle")).manifest["files"]
    assert (sealed.base_name, sealed.language, sealed.task) == ("mini-whisper", "Korean", "transcribe")
    assert sealed.manifest["data"]["splits"]["train"]["clips"] == 24


def test_labels_of_another_tokenizer_are_not_sealed(mini_bundle: Path, mini_model: Path, tmp_path: Path, said):
    """The ids would mean other words to the new model, and nothing later could tell."""
    bundle, other = tmp_path / "bundle", tmp_path / "other"
    shutil.copytree(mini_bundle, bundle)
    shutil.copytree(mini_model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    bring(DownloadModel, "--model-name-or-path", other, "--bundle-dir", bundle)
    assert "another model's tokenizer" in said.text
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        open_bundle(bundle)


def test_a_model_that_cannot_be_had_leaves_the_bundle_sealed(mini_bundle: Path, tmp_path: Path):
    bundle = tmp_path / "bundle"
    shutil.copytree(mini_bundle, bundle)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError):
        bring(DownloadModel, "--model-name-or-path", tmp_path / "empty", "--bundle-dir", bundle)
    assert open_bundle(bundle)


def report(bundle: Path) -> dict:
    return json.loads((bundle / "reports" / "data.json").read_text(encoding="utf-8"))


def reported(bundle: Path, **changes: object) -> None:
    """Seal a bundle of which data.json tells other things about what the data were made for."""
    found = report(bundle)
    found["settings"]["store"] = changes.pop("store", "audio")
    found["made_for"] |= changes
    (bundle / "reports" / "data.json").write_text(json.dumps(found), encoding="utf-8")
    unseal(bundle)
    seal_if_complete(bundle)


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"mel_bins": 128}, True),
        ({"mel_bins": 128, "store": "features"}, False),
        ({"mel_bins": 80, "store": "features"}, True),
        ({"window_frames": 3000}, False),
        ({"window_frames": 500}, True),
        ({"window_frames": 100}, True),
        ({"tokenizer_sha256": {"tokenizer.json": "0"}}, False),
    ],
)
def test_only_data_that_the_model_can_read_are_sealed(mini_bundle: Path, tmp_path: Path, changes: dict, fits: bool):
    """The model reads 80 mel bins and windows of 500 frames; log-mel of other bins would be noise to it."""
    bundle = tmp_path / "bundle"
    shutil.copytree(mini_bundle, bundle)
    reported(bundle, **changes)
    assert (bundle / "manifest.json").exists() == fits
    if fits:
        assert open_bundle(bundle)


def test_the_manifest_tells_settings_and_counts_that_add_up(mini_bundle: Path):
    """What training, evaluation and the page read, and what an auditor asks for."""
    manifest = open_bundle(mini_bundle).manifest
    assert (manifest["config"]["language"], manifest["config"]["task"]) == ("Korean", "transcribe")
    assert {"store", "split", "split_seed", "min_seconds", "max_seconds", "audio_layout"} <= manifest["config"].keys()
    data, splits = manifest["data"], {"train": 24, "validation": 4, "test": 4}
    assert data["rows_read"] == data["rows_kept"] + data["rows_dropped"] == 32
    assert {name: split["clips"] for name, split in data["splits"].items()} == splits
    assert data["sources"]["common-voice"]["splits"] == splits
    assert {"reports/data.json", "reports/data.html", "reports/dropped.csv"} <= manifest["files"].keys()


def test_new_data_are_not_sealed_with_an_old_report(mini_bundle: Path, tmp_path: Path):
    """Killed between the new data and their report, the bundle has data of which nothing is known."""
    bundle = tmp_path / "bundle"
    shutil.copytree(mini_bundle, bundle)
    unseal_data(bundle)
    assert not (bundle / "reports" / "data.json").exists()
    seal_if_complete(bundle)
    assert not (bundle / "manifest.json").exists()
    unseal_data(bundle)


# What to copy again


@pytest.fixture
def own(mini_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(mini_bundle, tmp_path / "bundle")


def changed(bundle: Path) -> set[str]:
    return set(bundle.with_name("bundle.changed.txt").read_text(encoding="utf-8").splitlines())


MANIFEST = {"manifest.json", "manifest.sha256"}


def test_the_first_sealing_tells_nothing_of_copying_again(own: Path, caplog: pytest.LogCaptureFixture):
    unseal(own)
    (own / "manifest.previous.json").unlink()
    told(seal_if_complete, own, caplog)
    assert "copy again" not in caplog.text
    assert not own.with_name("bundle.changed.txt").exists()


def told(function, bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Run a function with its messages caught: ours do not go up to the root."""
    log.propagate = True
    try:
        with caplog.at_level("INFO", logger="whisper"):
            function(bundle)
    finally:
        log.propagate = False


def test_what_changed_is_counted_and_listed(own: Path, caplog: pytest.LogCaptureFixture):
    unseal(own)
    (own / "reports" / "dropped.csv").write_text("changed", encoding="utf-8")
    (own / "model" / "added_tokens.json").write_text("{}", encoding="utf-8")
    (own / "reports" / "data.html").unlink()
    told(seal_if_complete, own, caplog)
    count = len(open_bundle(own).manifest["files"])
    assert f"copy again: 2 of {count} files, 9 bytes" in caplog.text
    assert "remove from the copy: 1 files that are gone, the first is reports/data.html" in caplog.text
    assert changed(own) == {"reports/dropped.csv", "model/added_tokens.json", *MANIFEST}
    assert not (own / "manifest.previous.json").exists()


def test_two_changes_before_one_sealing_are_both_listed(own: Path):
    """As download_model.py and download_data.py make them one after the other."""
    for name in ("model/added_tokens.json", "reports/dropped.csv"):
        unseal(own)
        (own / name).write_text("{}", encoding="utf-8")
    seal_if_complete(own)
    assert changed(own) == {"reports/dropped.csv", "model/added_tokens.json", *MANIFEST}


@pytest.mark.parametrize("garbage", [b"", b"[]", b'{"files": 3}', b"\xff"])
def test_a_broken_previous_manifest_does_no_harm(own: Path, garbage: bytes):
    unseal(own)
    (own / "manifest.previous.json").write_bytes(garbage)
    seal_if_complete(own)
    assert open_bundle(own)
    assert not own.with_name("bundle.changed.txt").exists()


def test_files_that_few_tools_hold_are_told(own: Path, caplog: pytest.LogCaptureFixture, monkeypatch):
    monkeypatch.setattr("asr.online.sealing.LARGEST_FILE", 100_000)
    unseal(own)
    told(seal_if_complete, own, caplog)
    assert "model/model.safetensors has" in caplog.text
    assert "--pack" in caplog.text


def test_more_data_change_only_the_files_that_have_to(own: Path, mini_model: Path, mini_release: Path, tmp_path: Path):
    """The model stays, and of the splits those to which nothing was added."""
    flags = ("run_online_setup.py", "--model-name-or-path", mini_model, "--bundle-dir", own,
             "--common-voice", mini_release, "--num-proc", 1)  # fmt: skip
    clips = sorted((DEMO_CORPUS / "clips").glob("*train_03*.mp3"))[:4]
    header = "path\tsentence\tclient_id\tsplit"
    lines = [f"{clip}\t더한 문장 {number}\tnew{number}\ttrain" for number, clip in enumerate(clips)]
    (tmp_path / "more.tsv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    done = script(*flags, "--table", tmp_path / "more.tsv", "--source", "common-voice", "table", "--split", "1,0,0",
                  check=True)  # fmt: skip
    listed = changed(own)
    assert "copy again: " in done.stderr
    assert "data/train/data-00000.arrow" in listed
    assert not {name for name in listed if name.startswith(("model/", "data/test/", "data/validation/"))}


def test_wheels_alone_can_be_added_to_a_bundle(own: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither model nor data are brought again for them."""
    monkeypatch.setitem(sys.modules, "asr.online.wheelhouse", types.ModuleType("wheelhouse"))

    def collect_wheels(bundle_dir: Path, wheels: Wheels, requirements: Path) -> None:
        assert wheels.wheels
        assert requirements.is_file()
        (bundle_dir / "wheels").mkdir()
        (bundle_dir / "wheels" / "a.whl").write_bytes(b"x")

    sys.modules["asr.online.wheelhouse"].collect_wheels = collect_wheels  # type: ignore[attr-defined]
    monkeypatch.setattr("download_model.bring_model", None)
    monkeypatch.setattr("download_data.bring_data", None)
    main(OnlineSetup(bundle=Bundle(own), wheels=Wheels(wheels=True)))
    assert open_bundle(own).manifest["files"]["wheels/a.whl"]["size"] == 1
    assert changed(own) == {"wheels/a.whl", *MANIFEST}


def test_wheels_that_cannot_be_had_leave_the_bundle_sealed(own: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "asr.online.wheelhouse", types.ModuleType("wheelhouse"))

    def collect_wheels(*_: object) -> None:
        raise UserError("there is no wheel of torch for this target")

    sys.modules["asr.online.wheelhouse"].collect_wheels = collect_wheels  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="no wheel of torch"):
        main(OnlineSetup(bundle=Bundle(own), wheels=Wheels(wheels=True)))
    assert open_bundle(own)
