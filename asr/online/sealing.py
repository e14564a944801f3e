"""Sealing: a bundle gets its manifest as soon as both of its halves are there and belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asr.shared.bundle import seal
from utils import log, sha256_of, write_json

MODEL_REPORT, DATA_REPORT = "model.json", "data.json"


def report_model(bundle_dir: Path, name: str, revision: str, audio_layout: str | None) -> None:
    """Note which model is in the bundle, and the audio layout that it was made for, if any."""
    source = Path(name)
    # A folder's path means nothing on the box; its name still tells which model this is.
    base_model = source.resolve().name if source.is_dir() else name
    write_json(
        bundle_dir / "reports" / MODEL_REPORT,
        {"base_model": base_model, "revision": revision, "audio_layout": audio_layout},
    )


def report_data(bundle_dir: Path, settings: dict[str, Any], counted: dict[str, Any]) -> None:
    """Note what the data are, and whose tokenizer made their labels."""
    report = {"settings": settings, "tokenizer_sha256": _tokenizer(bundle_dir), **counted}
    write_json(bundle_dir / "reports" / DATA_REPORT, report)


def seal_if_complete(bundle_dir: Path) -> None:
    """Write the manifest, or say what is still to be done."""
    reports = {name: bundle_dir / "reports" / name for name in (MODEL_REPORT, DATA_REPORT)}
    if not reports[DATA_REPORT].is_file():
        log.info("next: python download_data.py (the bundle has no data yet)")
        return
    model, data = (json.loads(report.read_text(encoding="utf-8")) for report in reports.values())
    if data.pop("tokenizer_sha256") != _tokenizer(bundle_dir):
        log.info("next: python download_data.py (the labels were made for another model's tokenizer)")
        return
    log.info("sealing the bundle")
    settings = {**data.pop("settings"), "audio_layout": model["audio_layout"]}
    bundle = seal(bundle_dir, model["base_model"], settings, data)
    size = sum(entry["size"] for entry in bundle.manifest["files"].values())
    log.info("done: %s holds %d files, %.1f MB", bundle_dir, len(bundle.manifest["files"]), size / 1e6)
    log.info("next: copy it and this project to the box, then: python train_offline.py")


def _tokenizer(bundle_dir: Path) -> dict[str, str]:
    names = ("tokenizer.json", "vocab.json", "merges.txt")
    files = (bundle_dir / "model" / name for name in names)
    return {file.name: sha256_of(file) for file in files if file.is_file()}
