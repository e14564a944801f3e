"""python download_model.py [--model-name-or-path ID|FOLDER|RUN] [flags]

ONLINE. Brings the base Whisper into bundle/model, as safetensors, with every file that an offline box needs: from the
Hub, from a folder, or from a run of ours (runs/NAME), whose adapter is merged into the base that is in the bundle.
"""

from __future__ import annotations

from asr.shared.cli import run_script
from config import Bundle, DownloadModel, Whisper
from utils import log


def main(config: DownloadModel) -> None:
    """Hub id, folder or run in, bundle/model out."""
    from asr.online.sealing import seal_if_complete

    bring_model(config.bundle, config.whisper)
    seal_if_complete(config.bundle.bundle_dir)


def bring_model(bundle: Bundle, whisper: Whisper, audio_layout: str | None = None) -> None:
    """Fetch the model and check that it is whole; `audio_layout` is the one it was made for, if not every one."""
    from asr.online.sealing import report_model
    from asr.online.whisper import fetch_whisper
    from asr.shared.bundle import unseal

    model_dir = bundle.bundle_dir / "model"
    fetched = fetch_whisper(whisper, model_dir, before_replacing=lambda: unseal(bundle.bundle_dir))
    audio_layout = audio_layout or fetched.audio_layout
    report_model(bundle.bundle_dir, whisper.model_name_or_path, fetched.revision, audio_layout)
    size = sum(file.stat().st_size for file in model_dir.iterdir())
    log.info("model: %s, %.1f MB in %s", whisper.model_name_or_path, size / 1e6, model_dir)


if __name__ == "__main__":
    run_script(main, DownloadModel, __doc__)
