"""python run_online_setup.py [--demo] [--common-voice PATH] [flags]

ONLINE. The whole online half: brings the model and the speech into one folder, and seals it with a manifest of
every file's size and SHA-256. Copy that folder and this project to the box, and go on with train_offline.py.
--demo does it with the embedded corpus and tiny Whisper, and needs no network.
"""

from __future__ import annotations

import json
from pathlib import Path

from asr.shared.cli import run_script
from config import Data, DownloadData, DownloadModel, OnlineSetup, Whisper, knobs
from utils import log

DEMO = Path(__file__).resolve().parent / "demo"


def main(config: OnlineSetup) -> None:
    """Nothing in, a sealed bundle out."""
    import download_data
    import download_model
    from asr.online.sources import check_source
    from asr.shared.bundle import seal

    if config.demo:
        use_demo(config.data, config.whisper)
    check_source(config.data)
    download_model.main(DownloadModel(config.bundle, config.whisper))
    download_data.main(DownloadData(config.bundle, config.whisper, config.data))

    log.info("sealing the bundle")
    bundle_dir = config.bundle.bundle_dir
    report = json.loads((bundle_dir / "reports" / "data.json").read_text(encoding="utf-8"))
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in knobs(config)}
    source = Path(config.whisper.model_name_or_path)
    # A folder's path means nothing on the box; its name still tells which model this is.
    base_model = source.resolve().name if source.is_dir() else config.whisper.model_name_or_path
    bundle = seal(bundle_dir, base_model, settings, report)
    size = sum(entry["size"] for entry in bundle.manifest["files"].values())
    log.info("done: %s holds %d files, %.1f MB", bundle_dir, len(bundle.manifest["files"]), size / 1e6)
    log.info("next: copy it and this project to the box, then: python train_offline.py")


def use_demo(data: Data, whisper: Whisper) -> None:
    """Point the configuration at what is embedded in demo/."""
    data.common_voice = DEMO / "cv-corpus-demo"
    whisper.model_name_or_path = str(DEMO / "tiny-whisper-ko")


if __name__ == "__main__":
    run_script(main, OnlineSetup, __doc__)
