"""Speech: the clips that a benchmark works on, out of the demo corpus or out of a table of real recordings."""

from __future__ import annotations

import csv
import itertools
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from asr.shared.audio import SAMPLE_RATE
from benchmarks.measuring import DEMO_CORPUS

LONGEST_S = 30.0
# Seconds of silence between two clips of a long recording, at least and at most.
PAUSES_S = (1.0, 4.0)
COLUMNS = {"path": ("path",), "text": ("sentence", "text"), "speaker": ("speaker", "client_id")}


@dataclass(frozen=True)
class Clip:
    """An utterance: one audio file, or several of one speaker that are heard end to end."""

    files: tuple[Path, ...]
    text: str
    speaker: str
    seconds: float

    def __add__(self, later: Clip) -> Clip:
        return Clip(self.files + later.files, f"{self.text} {later.text}", self.speaker, self.seconds + later.seconds)


def read_clips(speech: Path | None = None, transcripts: Path | None = None) -> list[Clip]:
    """Return the clips of a tab-separated table in its order, by default the demo corpus' training clips.

    Args:
        speech: folder that the table's paths start from.
        transcripts: table with the columns path, sentence (or text) and speaker (or client_id).
    """
    import soundfile

    speech = speech or DEMO_CORPUS / "clips"
    with open(transcripts or DEMO_CORPUS / "train.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    named = {ours: next((name for name in names if name in rows[0]), "") for ours, names in COLUMNS.items()}
    missing = [" or ".join(COLUMNS[ours]) for ours, name in named.items() if not name]
    if missing:
        raise SystemExit(f"{transcripts} has no column {missing[0]}")
    clips = []
    for row in rows:
        path = speech / row[named["path"]]
        seconds = soundfile.info(path).duration
        clips.append(Clip((path,), row[named["text"]], row[named["speaker"]], seconds))
    return clips


def mean_seconds(clips: list[Clip]) -> float:
    """Return the mean length."""
    return sum(clip.seconds for clip in clips) / len(clips)


def join_neighbours(clips: list[Clip], seconds: float, seed: int = 0) -> list[Clip]:
    """Join neighbours of one speaker, drawn at random, until the mean length is `seconds`; nothing is left out.

    Clips that are as long on the average already stay as they are; otherwise they come speaker by speaker.
    """
    if mean_seconds(clips) >= seconds:
        return clips
    joined = sorted(clips, key=lambda clip: clip.speaker)
    wanted = sum(clip.seconds for clip in clips) / seconds
    draw = random.Random(seed)
    while len(joined) > wanted:
        pairs = [
            at
            for at in range(len(joined) - 1)
            if joined[at].speaker == joined[at + 1].speaker and joined[at].seconds + joined[at + 1].seconds <= LONGEST_S
        ]
        if not pairs:
            break
        at = draw.choice(pairs)
        joined[at : at + 2] = [joined[at] + joined[at + 1]]
    return joined


def choose(clips: list[Clip], count: int, seed: int) -> list[Clip]:
    """Draw clips at random, one of each of `count` groups of like length, so that their mean is that of all clips."""
    draw = random.Random(seed)
    by_length = sorted(clips, key=lambda clip: clip.seconds)
    ends = [len(clips) * place // count for place in range(count + 1)]
    chosen = [by_length[draw.randrange(start, end)] for start, end in itertools.pairwise(ends)]
    draw.shuffle(chosen)
    return chosen


def write_table(clips: list[Clip], folder: Path) -> Path:
    """Write the clips as 16 kHz FLAC and a table, as `--table` reads it."""
    import numpy as np
    import soundfile

    from asr.shared.audio import load_audio

    folder.mkdir(parents=True)
    with open(folder / "clips.tsv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["path", "text", "speaker"])
        for number, clip in enumerate(clips):
            name = f"{number:06d}.flac"
            soundfile.write(folder / name, np.concatenate([load_audio(one) for one in clip.files]), SAMPLE_RATE)
            table.writerow([name, clip.text, clip.speaker])
    return folder / "clips.tsv"


def copy_files(clips: list[Clip], folder: Path) -> None:
    """Copy the audio files of clips, byte for byte and in their order by name, into `folder`, which is new.

    Raises:
        ValueError: a clip has several files.
    """
    folder.mkdir(parents=True)
    for number, clip in enumerate(clips):
        (file,) = clip.files
        shutil.copyfile(file, folder / f"{number:06d}{file.suffix}")


def write_recording(clips: list[Clip], seconds: float, file: Path, seed: int) -> Clip:
    """Write one 16 kHz FLAC in which the clips are heard again and again, in orders drawn at random, and return it.

    Between two of them is digital silence of a length drawn from `PAUSES_S`; the pauses of the clips themselves stay.

    Args:
        clips: at least one.
        seconds: that it has at least; it ends with the clip that fills them.
        file: new.
        seed: of orders and pauses.
    """
    import numpy as np
    import soundfile

    from asr.shared.audio import load_audio

    draw, texts, samples = random.Random(seed), [], 0
    file.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(file, "w", SAMPLE_RATE, 1) as recording:
        order = itertools.chain.from_iterable(draw.sample(clips, len(clips)) for _ in itertools.count())
        while samples < seconds * SAMPLE_RATE:
            pause = round(draw.uniform(*PAUSES_S) * SAMPLE_RATE) if samples else 0
            clip = next(order)
            sound = [np.zeros(pause, dtype=np.float32), *map(load_audio, clip.files)]
            recording.write(np.concatenate(sound))
            samples += sum(map(len, sound))
            texts.append(clip.text)
    return Clip((file,), " ".join(texts), "", samples / SAMPLE_RATE)
