"""python inference.py [FILE|FOLDER|PATTERN|- ...] [--export merged|ctranslate2|both] [--run NAME] [flags]

OFFLINE. Writes down audio of any length and format: text, subtitles (srt, vtt), a table or JSON, to standard output or
into --transcript-dir. With --export, writes the run as a model that other tools open. With neither, serves a page with
upload and microphone on 127.0.0.1.
"""

from __future__ import annotations

from pathlib import Path

import utils
from asr.shared.cli import run_script
from config import Inference
from utils import Interrupted, UserError, log


def main(config: Inference) -> None:
    """Files in, text out; or a page."""
    utils.go_offline()
    from asr.offline.precision import limit_devices

    limit_devices(config.device.cuda_visible_devices)
    if config.export.export != "none":
        from asr.offline.export import export_run

        export_run(config)
        return
    if config.files:
        transcribe_files(config)
        return
    from asr.offline.page.server import serve

    serve(config, shape_of(config))


def transcribe_files(config: Inference) -> None:
    """Write down each recording, and name those that could not be read at the end."""
    from asr.offline.inputs import recordings_named
    from asr.offline.transcribing import Failure

    with recordings_named(config.files) as inputs:
        wanted = [one for one in inputs if config.transcribing.overwrite or not is_done(config, one)]
        if len(wanted) < len(inputs):
            log.info("%d of %d are done already (--overwrite does them again)", len(inputs) - len(wanted), len(inputs))
        failures = []
        try:
            for one, transcript in transcripts_of(config, wanted):
                if isinstance(transcript, Failure):
                    failures.append(f"{one.name}: {transcript.reason}")
                else:
                    put_out(config, one, transcript, several=len(inputs) > 1)
        except KeyboardInterrupt:
            again = ": the same command goes on with the rest" if config.transcribing.transcript_dir else ""
            raise Interrupted(f"interrupted{again}") from None
    for line in failures:
        log.error("%s", line)
    if failures:
        raise UserError(f"{len(failures)} of {len(inputs)} files could not be read")


def transcripts_of(config: Inference, inputs):
    """Yield each input with its transcript, or with why there is none."""
    from contextlib import ExitStack

    from transformers.utils import logging as transformers_logging

    from asr.offline.choice import choose
    from asr.offline.recordings import duration_of
    from asr.offline.transcribing import hearing, transcribe_recordings
    from asr.shared.progress import progress_bar

    if not inputs:
        return
    transformers_logging.disable_progress_bar()
    timed = timestamps_of(config) != "none"
    choice = choose(config, with_base=config.transcribing.compare == "base")
    seconds = sum(duration_of(one.path) for one in inputs)
    with ExitStack() as stack:
        hear = hearing(stack.enter_context(choice.opener.open(choice.system)), timed)
        hear_base = hearing(stack.enter_context(choice.opener.open(choice.base)), False) if choice.base else None
        bar = stack.enter_context(
            progress_bar(total=round(seconds / 60, 1), desc="transcribing", unit="min", leave=False)
        )
        paths = [one.path for one in inputs]
        found = transcribe_recordings(
            paths, hear, choice.windowing, shape_of(config), hear_base, lambda heard: bar.update(round(heard / 60, 3))
        )
        yield from zip(inputs, found, strict=True)


def put_out(config: Inference, one, transcript, several: bool) -> None:
    """Write a transcript to its file, or to standard output."""
    from dataclasses import replace

    from asr.offline.subtitles import FORMATS

    wanted = config.transcribing
    text = FORMATS[wanted.format](replace(transcript, name=one.name), timestamps_of(config), shape_of(config))
    for note in transcript.notes:
        log.warning("%s: %s", one.name, note)
    if wanted.transcript_dir:
        utils.write_atomically(output_of(config, one), text)
    elif wanted.format == "txt" and timestamps_of(config) == "none":
        for label, line in [("base: ", transcript.base), ("tuned: ", text.strip())]:
            if line is not None:
                name = f"{one.name}\t" if several else ""
                print(f"{name}{label if transcript.base is not None else ''}{line}", flush=True)
    else:
        print(f"{one.name}\n{text}" if several and wanted.format != "json" else text, end="", flush=True)


def shape_of(config: Inference):
    """Return how long segments may be."""
    from asr.offline.transcripts import Shape

    wanted = config.transcribing
    return Shape(wanted.max_line_width, wanted.max_line_count, wanted.max_segment_s)


def timestamps_of(config: Inference) -> str:
    """Return which times are written."""
    from asr.offline.subtitles import times_of

    return times_of(config.transcribing.timestamps, config.transcribing.format)


def output_of(config: Inference, one) -> Path:
    """Return the file that a recording's transcript goes to."""
    folder = config.transcribing.transcript_dir
    assert folder is not None
    below = folder / one.below
    return below.with_name(f"{below.name}.{config.transcribing.format}")


def is_done(config: Inference, one) -> bool:
    """Tell whether a recording has its transcript, made after it."""
    if config.transcribing.transcript_dir is None:
        return False
    output = output_of(config, one)
    return output.is_file() and output.stat().st_mtime >= one.path.stat().st_mtime


if __name__ == "__main__":
    run_script(main, Inference, __doc__)
