"""python run_online_setup.py [--demo] [--common-voice PATH] [flags]

ONLINE. The whole online half: brings the model and the speech into one folder, and seals it with a manifest of
every file's size and SHA-256. Copy that folder and this project to the box, and go on with train_offline.py.
--demo does it with the embedded corpus and tiny Whisper, and needs no network.
"""

from __future__ import annotations

from pathlib import Path

from asr.shared.cli import run_script
from config import Data, OnlineSetup, Whisper

DEMO = Path(__file__).resolve().parent / "demo"


def main(config: OnlineSetup) -> None:
    """Nothing in, a sealed bundle out."""
    from asr.online.sealing import seal_if_complete
    from asr.online.sources import check_sources
    from download_data import bring_data
    from download_model import bring_model

    if config.demo:
        use_demo(config.data, config.whisper)
    check_sources(config.data, config.whisper)
    # The demo's Whisper is too small to find its way in windows full of clips.
    bring_model(config.bundle, config.whisper, audio_layout="trimmed" if config.demo else None)
    bring_data(config.bundle, config.whisper, config.data)
    seal_if_complete(config.bundle.bundle_dir)


def use_demo(data: Data, whisper: Whisper) -> None:
    """Point the configuration at what is embedded in demo/."""
    data.common_voice.common_voice = DEMO / "cv-corpus-demo"
    whisper.model_name_or_path = str(DEMO / "tiny-whisper-ko")


if __name__ == "__main__":
    run_script(main, OnlineSetup, __doc__)
