"""python download_model.py [--model-name-or-path ID|FOLDER] [flags]

ONLINE. Brings the base Whisper into bundle/model, as safetensors, with every file that an offline box needs.
"""

from __future__ import annotations

from asr.shared.cli import run_script
from config import DownloadModel
from utils import log


def main(config: DownloadModel) -> None:
    """Hub id or folder in, bundle/model out."""
    from asr.online.whisper import fetch_whisper
    from asr.shared.bundle import unseal

    unseal(config.bundle.bundle_dir)
    model_dir = config.bundle.bundle_dir / "model"
    fetch_whisper(config.whisper, model_dir)
    size = sum(file.stat().st_size for file in model_dir.iterdir())
    log.info("model: %s, %.1f MB in %s", config.whisper.model_name_or_path, size / 1e6, model_dir)


if __name__ == "__main__":
    run_script(main, DownloadModel, __doc__)
