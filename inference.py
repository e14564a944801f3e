"""python inference.py [FILE ...] [--run NAME] [flags]

OFFLINE. Prints the text of audio files, a line each (after the file's name where there are several). With no files,
serves a page with upload and microphone on 127.0.0.1.
"""

from __future__ import annotations

from pathlib import Path

import utils
from asr.shared.cli import run_script
from config import Inference
from utils import UserError, log


def main(config: Inference) -> None:
    """Files in, text out; or a page."""
    utils.go_offline()
    from asr.offline.precision import limit_devices

    limit_devices(config.device.cuda_visible_devices)
    missing = [str(file) for file in config.files if not file.exists()]
    if missing:
        raise UserError(f"there is no such file: {', '.join(missing[:5])}{' ...' if missing[5:] else ''}")

    from asr.offline.session import open_session

    with_base = not config.files
    session = open_session(config.bundle.bundle_dir, config.use, config.device, config.decoding, with_base)
    if config.files:
        transcribe_files(config.files, session)
        return
    from asr.offline.page import serve

    serve(session, config.page.port)


def transcribe_files(files: tuple[Path, ...], session) -> None:
    """Print each file's text; name the files that could not be read at the end."""
    from asr.shared.audio import AudioError, load_audio

    failed: list[str] = []
    for file in files:
        try:
            waveform = load_audio(file)
        except AudioError as error:
            failed.append(f"{file}: {error}")
            continue
        text = session.tuned.transcribe([waveform])[0]
        print(f"{file}\t{text}" if len(files) > 1 else text, flush=True)
    for line in failed:
        log.error("%s", line)
    if failed:
        raise UserError(f"{len(failed)} of {len(files)} files could not be read")


if __name__ == "__main__":
    run_script(main, Inference, __doc__)
