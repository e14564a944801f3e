"""python -m benchmarks.plain_transcribing PROGRAM --model FOLDER --audio FOLDER --out FILE.json [--tokens N]

What anyone would write to transcribe a folder of Korean recordings, for comparison: one file after the other.

- `pipeline` is transformers' pipeline with its defaults, which are a beam of 5. A file of more than 30 s goes through
  its default for long files, the sequential algorithm of the Whisper paper, for which it demands
  `return_timestamps=True`; of `chunk_length_s` the library itself says that it is very experimental with Whisper.
- `faster-whisper` is `WhisperModel.transcribe` with its defaults: a beam of 5, other temperatures where a text is
  unlikely or repeats itself, the text before as a prompt, times of segments, no detector of speech.
- `faster-whisper-greedy` is the same with a beam of 1, one temperature, no times, and no text before.

All of them are told the language and, with --tokens, to write no more than so many tokens of a window.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

LANGUAGE = "ko"
WINDOW_S = 30.0
SAMPLE_RATE = 16_000
GREEDY: dict[str, Any] = {
    "beam_size": 1,
    "temperature": 0,
    "without_timestamps": True,
    "condition_on_previous_text": False,
}


def main() -> None:
    """Transcribe, and write seconds and texts as JSON."""
    options = parse()
    files = sorted(options.audio.iterdir())
    told = PROGRAMS[options.program](options.model, files, options.tokens)
    options.out.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int)
    return parser.parse_args()


def with_pipeline(model: Path, files: list[Path], tokens: int | None) -> dict[str, Any]:
    """Return the seconds from the loaded model to the last text, the text of each file, and the number of threads."""
    import torch
    from transformers import pipeline

    listen = pipeline("automatic-speech-recognition", model=str(model))
    asked = {"language": LANGUAGE, "task": "transcribe"} | ({"max_new_tokens": tokens} if tokens else {})
    began = time.monotonic()
    texts = [
        listen(readable(file), return_timestamps=is_long(file), generate_kwargs=dict(asked))["text"] for file in files
    ]
    return {"seconds": time.monotonic() - began, "texts": texts, "threads": torch.get_num_threads()}


def with_faster_whisper(model: Path, files: list[Path], tokens: int | None, **how: Any) -> dict[str, Any]:
    """Return the seconds from the loaded model to the last text, and the text of each file.

    Beside them are whether it takes the model for one of many languages (`multilingual`), how many segments there are
    (`segments`), and how many of them come from a higher temperature (`again`).
    """
    from faster_whisper import WhisperModel

    listen = WhisperModel(str(model))
    began = time.monotonic()
    texts, temperatures = [], []
    for file in files:
        limit = limit_for(tokens, listen.model.is_multilingual, is_long(file), how) if tokens else None
        segments, _ = listen.transcribe(str(file), language=LANGUAGE, max_new_tokens=limit, **how)
        found = list(segments)
        texts.append("".join(segment.text for segment in found))
        temperatures += [segment.temperature for segment in found]
    return {
        "seconds": time.monotonic() - began,
        "texts": texts,
        "multilingual": listen.model.is_multilingual,
        "segments": len(temperatures),
        "again": sum(temperature > 0 for temperature in temperatures),
    }


def limit_for(tokens: int, multilingual: bool, long: bool, how: dict[str, Any]) -> int:
    """Return the `max_new_tokens` with which faster-whisper writes so many tokens, the one of a first time included.

    CTranslate2 stops after the smaller of this and of half of this with the prompt. With the text before in the prompt
    it is this from the third window on, and fewer in the first two.
    """
    if long and how.get("condition_on_previous_text", True):
        return tokens
    prompt = (3 if multilingual else 1) + bool(how.get("without_timestamps"))
    return max(tokens, 2 * tokens - prompt)


def is_long(file: Path) -> bool:
    """Tell whether a file is longer than one window."""
    import soundfile

    return soundfile.info(file).duration > WINDOW_S


def readable(file: Path) -> str | Any:
    """Return what the pipeline takes of a file: its name, or its waveform where there is no ffmpeg to read it with."""
    if shutil.which("ffmpeg"):
        return str(file)
    from transformers.audio_utils import load_audio

    return load_audio(str(file), sampling_rate=SAMPLE_RATE)


PROGRAMS: dict[str, Callable[[Path, list[Path], int | None], dict[str, Any]]] = {
    "pipeline": with_pipeline,
    "faster-whisper": with_faster_whisper,
    "faster-whisper-greedy": partial(with_faster_whisper, **GREEDY),
}


if __name__ == "__main__":
    main()
