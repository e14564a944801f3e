"""Sealing: the two halves may be brought one by one, and are sealed only when they belong together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from asr.shared.bundle import open_bundle
from tests.conftest import script


def test_halves_that_come_one_by_one_make_a_bundle(mini_model: Path, mini_release: Path, tmp_path: Path):
    bundle = ("--bundle-dir", tmp_path / "bundle")
    first = script("download_model.py", "--model-name-or-path", mini_model, *bundle, check=True)
    assert "next: python download_data.py" in first.stderr
    assert not (tmp_path / "bundle" / "manifest.json").exists()
    script("download_data.py", "--common-voice", mini_release, "--num-proc", 1, *bundle, check=True)
    sealed = open_bundle(tmp_path / "bundle")
    assert (sealed.base_name, sealed.language, sealed.task) == ("mini-whisper", "Korean", "transcribe")
    assert sealed.manifest["data"]["splits"]["train"]["clips"] == 24


def test_labels_of_another_tokenizer_are_not_sealed(mini_bundle: Path, mini_model: Path, tmp_path: Path):
    """The ids would mean other words to the new model, and nothing later could tell."""
    bundle, other = tmp_path / "bundle", tmp_path / "other"
    shutil.copytree(mini_bundle, bundle)
    shutil.copytree(mini_model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    done = script("download_model.py", "--model-name-or-path", other, "--bundle-dir", bundle, check=True)
    assert "another model's tokenizer" in done.stderr
    assert script("train_offline.py", "--bundle-dir", bundle).returncode == 3


def test_a_model_that_cannot_be_had_leaves_the_bundle_sealed(mini_bundle: Path, tmp_path: Path):
    bundle = tmp_path / "bundle"
    shutil.copytree(mini_bundle, bundle)
    (tmp_path / "empty").mkdir()
    done = script("download_model.py", "--model-name-or-path", tmp_path / "empty", "--bundle-dir", bundle)
    assert done.returncode == 2
    assert open_bundle(bundle)
