"""python run_online_setup.py [--demo] [--common-voice PATH] [flags]

ONLINE. The whole online half: brings the model and the speech into one folder, and seals it with a manifest of
every file's size and SHA-256. Copy that folder and this project to the box, and go on with train_offline.py.
--demo does it with the embedded corpus and tiny Whisper, and needs no network.

With one of these it does that alone, on either side, and needs nothing but Python: --verify compares bundle and
project with the manifest, --pack DIR writes both into volumes, --unpack DIR puts the bundle together again, and
--install-wheels installs the packages that --wheels brought.
"""

from __future__ import annotations

from pathlib import Path

from asr.shared.cli import run_script
from config import Data, OnlineSetup, Whisper
from utils import UserError, log

ROOT = Path(__file__).resolve().parent
DEMO = ROOT / "demo"


def main(config: OnlineSetup) -> None:
    """Nothing in, a sealed bundle out; or one step of carrying it."""
    if not cross(config):
        set_up(config)


def cross(config: OnlineSetup) -> bool:
    """Do the step of the crossing that is asked for, if one is: nothing here needs a package that pip installs."""
    crossing, bundle_dir = config.crossing, config.bundle.bundle_dir
    flags = {
        "--verify": crossing.verify,
        "--pack": crossing.pack is not None,
        "--unpack": crossing.unpack is not None,
        "--install-wheels": config.wheels.install_wheels,
    }
    asked = [flag for flag, given in flags.items() if given]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} are separate steps: give one at a time")
    if crossing.quick and not crossing.verify:
        raise UserError("--quick goes with --verify")
    if crossing.verify:
        from asr.shared.verification import verify

        verify(bundle_dir, crossing.quick)
    elif crossing.pack is not None:
        from asr.shared.packing import pack

        pack(bundle_dir, crossing.pack, crossing.volume_size)
    elif crossing.unpack is not None:
        from asr.shared.unpacking import unpack

        unpack(crossing.unpack, bundle_dir)
    elif config.wheels.install_wheels:
        from asr.shared.installing import install

        install(bundle_dir)
    return bool(asked)


def set_up(config: OnlineSetup) -> None:
    """Bring wheels, model and speech, as far as they are asked for, and seal them."""
    from asr.online.sealing import seal_if_complete
    from asr.online.sources import check_sources
    from download_data import bring_data
    from download_model import bring_model

    bundle_dir = config.bundle.bundle_dir
    if config.wheels.wheels:
        # First of all: whether a target exists at all is known at once, and what was fetched need not be fetched again.
        bring_wheels(config)
        if only_wheels(config):
            log.info("model and data stay as they are: nothing is asked of them")
            seal_if_complete(bundle_dir)
            return
    if config.demo:
        use_demo(config.data, config.whisper)
    check_sources(config.data, config.whisper)
    # The demo's Whisper is too small to find its way in windows full of clips.
    bring_model(config.bundle, config.whisper, audio_layout="trimmed" if config.demo else None)
    bring_data(config.bundle, config.whisper, config.data)
    seal_if_complete(bundle_dir)


def bring_wheels(config: OnlineSetup) -> None:
    """Collect the packages for the box; a bundle whose wheels stayed as they were stays sealed."""
    from asr.online.wheelhouse import collect_wheels
    from asr.shared.bundle import unseal
    from asr.shared.checksums import files_below
    from asr.shared.memory import stamps_of

    bundle_dir = config.bundle.bundle_dir

    def state() -> dict:
        return stamps_of(bundle_dir, files_below(bundle_dir, ["wheels"])[0])

    before = state()
    try:
        collect_wheels(bundle_dir, config.wheels, ROOT / "requirements.txt")
    finally:
        if state() != before:
            unseal(bundle_dir)


def only_wheels(config: OnlineSetup) -> bool:
    """Are wheels all that is asked for, because the bundle has model and data and no flag speaks of others?"""
    from asr.online.sealing import has_both_halves

    asked = config.demo or config.data != Data() or config.whisper != Whisper()
    return not asked and has_both_halves(config.bundle.bundle_dir)


def use_demo(data: Data, whisper: Whisper) -> None:
    """Point the configuration at what is embedded in demo/."""
    data.common_voice.common_voice = DEMO / "cv-corpus-demo"
    whisper.model_name_or_path = str(DEMO / "tiny-whisper-ko")


if __name__ == "__main__":
    run_script(main, OnlineSetup, __doc__)
