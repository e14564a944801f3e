"""Sealing: a bundle gets its manifest as soon as both of its halves are there and belong together."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asr.shared.bundle import MANIFEST, PREVIOUS, SEAL, Bundle, seal, unseal
from asr.shared.meter import in_bytes
from asr.shared.processor import mel_window
from utils import log, sha256_of, write_atomically, write_json

MODEL_REPORT, DATA_REPORT = "model.json", "data.json"
# Some tools and file systems hold no more in one file.
LARGEST_FILE = 2 * 1024**3


def report_model(bundle_dir: Path, name: str, revision: str, audio_layout: str | None) -> None:
    """Note which model is in the bundle, and the audio layout that it was made for, if any."""
    source = Path(name)
    # A folder's path means nothing on the box; its name still tells which model this is.
    base_model = source.resolve().name if source.is_dir() else name
    write_json(
        bundle_dir / "reports" / MODEL_REPORT,
        {"base_model": base_model, "revision": revision, "audio_layout": audio_layout},
    )


def report_data(bundle_dir: Path, settings: dict[str, Any], mel: tuple[int, int], figures: dict[str, Any]) -> None:
    """Note what the data are, whose tokenizer made their labels, and for which encoder's window they are."""
    made_for = {"tokenizer_sha256": _tokenizer(bundle_dir), "mel_bins": mel[0], "window_frames": mel[1]}
    report = {**figures, "settings": settings, "made_for": made_for}
    write_json(bundle_dir / "reports" / DATA_REPORT, report)


def unseal_data(bundle_dir: Path) -> None:
    """Open the seal before the data change, and forget what they were: new data must not go with an old report."""
    unseal(bundle_dir)
    (bundle_dir / "reports" / DATA_REPORT).unlink(missing_ok=True)


def has_both_halves(bundle_dir: Path) -> bool:
    """Has the bundle a model and data, sealed or not?"""
    return all((bundle_dir / "reports" / name).is_file() for name in (MODEL_REPORT, DATA_REPORT))


def seal_if_complete(bundle_dir: Path) -> None:
    """Write the manifest, or say what is still to be done."""
    reports = {name: bundle_dir / "reports" / name for name in (MODEL_REPORT, DATA_REPORT)}
    for name, half in ((MODEL_REPORT, "model"), (DATA_REPORT, "data")):
        if not reports[name].is_file():
            log.info("next: python download_%s.py (the bundle has no %s yet)", half, half)
            return
    model, data = (json.loads(report.read_text(encoding="utf-8")) for report in reports.values())
    unfit = _unfit(bundle_dir, data["made_for"], data["settings"]["store"])
    if unfit:
        log.info("next: python download_data.py (%s)", unfit)
        return
    log.info("sealing the bundle")
    settings = {**data["settings"], "audio_layout": model["audio_layout"]}
    counts = {name: data[name] for name in ("rows_read", "rows_kept", "rows_dropped", "splits", "sources")}
    bundle = seal(bundle_dir, model["base_model"], settings, counts)
    files = bundle.manifest["files"]
    log.info("done: %s holds %d files, %s", bundle_dir, len(files), in_bytes(_size_of(files, files)))
    _tell_large(files)
    _tell_changes(bundle)
    log.info("next: copy it and this project to the box, then: python train_offline.py")


def _tell_large(files: dict[str, Any]) -> None:
    for name, entry in files.items():
        if entry["size"] > LARGEST_FILE:
            log.warning("warning: %s has %s: to carry it in pieces, use --pack", name, in_bytes(entry["size"]))


def _tell_changes(bundle: Bundle) -> None:
    """Say what differs from the bundle as it was sealed before, and list beside it what to copy again."""
    old, new = _previous_files(bundle.path), bundle.manifest["files"]
    listed = bundle.path.absolute().with_name(f"{bundle.path.absolute().name}.changed.txt")
    (bundle.path / PREVIOUS).unlink(missing_ok=True)
    listed.unlink(missing_ok=True)
    if old is None:
        return
    changed = [name for name, entry in new.items() if entry != old.get(name)]
    size = in_bytes(_size_of(new, changed))
    write_atomically(listed, "".join(f"{name}\n" for name in [*changed, MANIFEST, SEAL]))
    log.info("copy again: %d of %d files, %s, and the manifest (%s names them)", len(changed), len(new), size, listed)
    gone = sorted(old.keys() - new.keys())
    if gone:
        log.info("remove from the copy: %d files that are gone, the first is %s", len(gone), gone[0])
    if changed or gone:
        log.info("a copy of another time is compared by: python run_online_setup.py --verify (with the new manifest)")


def _previous_files(bundle_dir: Path) -> dict[str, Any] | None:
    try:
        files = json.loads((bundle_dir / PREVIOUS).read_text(encoding="utf-8"))["files"]
    # There may be none, and an old one may have been damaged: then everything counts as new.
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return files if isinstance(files, dict) else None


def _size_of(files: dict[str, Any], names: Iterable[str]) -> int:
    return sum(files[name]["size"] for name in names)


def _unfit(bundle_dir: Path, made_for: dict[str, Any], store: str) -> str:
    """Say why the data do not go with the model, or nothing."""
    mel_bins, window_frames = mel_window(bundle_dir / "model")
    if made_for["tokenizer_sha256"] != _tokenizer(bundle_dir):
        return "the labels were made for another model's tokenizer"
    if made_for["window_frames"] > window_frames:
        return "the clips may be longer than this model's window"
    if store == "features" and made_for["mel_bins"] != mel_bins:
        return f"the log-mel was made with {made_for['mel_bins']} bins, and this model reads {mel_bins}"
    return ""


def _tokenizer(bundle_dir: Path) -> dict[str, str]:
    names = ("tokenizer.json", "vocab.json", "merges.txt")
    files = (bundle_dir / "model" / name for name in names)
    return {file.name: sha256_of(file) for file in files if file.is_file()}
