"""python -m benchmarks.prepare [--speech FOLDER] [--clips 600] [--seconds 5] [--out FILE.md]

Whole work from mp3 at 48 kHz to the saved dataset: the plain recipe of the public notebooks (`Dataset.map` with
WhisperFeatureExtractor on decoded audio, padded float32, `save_to_disk`) against download_data.py, on the same clips,
one after the other, each in processes of its own. The plain recipe gets the fastest decoder that is installed.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measuring import DEMO_CORPUS, DEMO_MODEL, ROOT, Usage, machine, measure, size_of

SPLITS = {"train": 0.8, "dev": 0.1, "test": 0.1}
RATE = 48_000


@dataclass(frozen=True)
class Measured:
    """One recipe's whole work, and the bytes that it left on the disk."""

    name: str
    usage: Usage
    size: int


def main() -> None:
    """Make the clips, run each recipe, print the table."""
    options = parse()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        release = make_release(options.speech, options.clips, options.seconds, work / "cv-corpus-bench" / "ko")
        cores = os.cpu_count() or 1
        runs = [plain(release, work / f"plain-{count}", count) for count in sorted({1, cores})]
        runs += [ours(release, work / store, store) for store in ("audio", "features")]
        check_same(work / f"plain-{cores}", work / "audio" / "data")
        table = as_table(runs, options.clips, options.seconds, options.speech.name)
    print(table)
    if options.out:
        options.out.write_text(table, encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--speech", type=Path, default=DEMO_CORPUS / "clips", help="any audio files")
    parser.add_argument("--clips", type=int, default=600, help="how many clips are made of them")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--plain", nargs=3, metavar=("RELEASE", "OUT", "NUM_PROC"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        release, out, num_proc = options.plain
        plain_recipe(Path(release), Path(out), int(num_proc))
        sys.exit()
    return options


def make_release(speech: Path, clips: int, seconds: float, folder: Path) -> Path:
    """Lay out a Common Voice release of clips of one length, cut out of all speech joined, as mp3 at 48 kHz."""
    import soundfile
    import soxr

    (folder / "clips").mkdir(parents=True)
    pieces = cut(speech, int(seconds * 16_000))
    names = []
    for number in range(clips):
        buffer = io.BytesIO()
        soundfile.write(buffer, soxr.resample(next(pieces), 16_000, RATE), RATE, format="MP3")
        names.append(f"common_voice_ko_{number:06d}.mp3")
        (folder / "clips" / names[-1]).write_bytes(buffer.getvalue())
    begin = 0
    for split, share in SPLITS.items():
        end = begin + round(share * clips)
        with open(folder / f"{split}.tsv", "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, delimiter="\t", lineterminator="\n")
            table.writerow(["client_id", "path", "sentence"])
            for number in range(begin, end):
                sentence = f"이것은 측정을 위한 문장이고 번호는 {number} 번입니다"
                table.writerow([f"speaker {split}", names[number], sentence])
        begin = end
    return folder


def cut(speech: Path, samples: int) -> Iterator:
    """Yield pieces of `samples` at 16 kHz out of all the audio of a folder, again and again."""
    import numpy as np

    from asr.shared.audio import load_audio

    files = sorted(file for file in speech.rglob("*") if file.suffix in {".mp3", ".flac", ".wav"})
    rest = np.zeros(0, dtype=np.float32)
    lap = 0
    while True:
        for file in files:
            rest = np.concatenate([rest, load_audio(file)])
            while len(rest) > samples:
                yield rest[:samples]
                rest = rest[samples:]
        # A second lap cuts at other places, so that no two clips are the same.
        lap += 1
        rest = rest[1000 * lap % samples :]


def plain(release: Path, out: Path, num_proc: int) -> Measured:
    """Run the plain recipe in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.prepare", "--plain", str(release), str(out), str(num_proc)]
    return Measured(f"plain recipe, num_proc={num_proc}", measure(command), size_of(out))


def ours(release: Path, bundle: Path, store: str) -> Measured:
    """Run download_data.py."""
    model = [sys.executable, str(ROOT / "download_model.py"), "--model-name-or-path", str(DEMO_MODEL)]
    subprocess.run([*model, "--bundle-dir", str(bundle)], check=True, capture_output=True)
    command = [sys.executable, str(ROOT / "download_data.py"), "--common-voice", str(release)]
    # Repeats of the joined speech, and what a clip says, are of no interest here: every clip is to be stored.
    command += ["--bundle-dir", str(bundle), "--store", store, "--strict"]
    command += ["--min-syllables-per-second", "0", "--max-clipped", "1"]
    return Measured(f"download_data.py, store={store}", measure(command), size_of(bundle / "data"))


def plain_recipe(release: Path, out: Path, num_proc: int) -> None:
    """Do what the public notebooks do, with soundfile and soxr for the decoding."""
    import soundfile
    import soxr
    from datasets import Dataset, DatasetDict
    from transformers import WhisperFeatureExtractor, WhisperTokenizer

    extractor = WhisperFeatureExtractor.from_pretrained(DEMO_MODEL)
    tokenizer = WhisperTokenizer.from_pretrained(DEMO_MODEL, language="korean", task="transcribe")

    def prepare_dataset(batch: dict) -> dict:
        audio, rate = soundfile.read(batch["path"], dtype="float32")
        audio = soxr.resample(audio, rate, 16_000)
        batch["input_features"] = extractor(audio, sampling_rate=16_000).input_features[0]
        batch["labels"] = tokenizer(batch["sentence"]).input_ids
        return batch

    splits = {}
    for name in SPLITS:
        with open(release / f"{name}.tsv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        paths = [str(release / "clips" / row["path"]) for row in rows]
        splits[name] = Dataset.from_dict({"path": paths, "sentence": [row["sentence"] for row in rows]})
    DatasetDict(splits).map(prepare_dataset, num_proc=num_proc if num_proc > 1 else None).save_to_disk(str(out))


def check_same(plain_out: Path, our_data: Path) -> None:
    """Both recipes must have made the same text and labels of the same clips."""
    from datasets import load_from_disk

    theirs, our = load_from_disk(str(plain_out)), load_from_disk(str(our_data))
    for their_name, our_name in {"train": "train", "dev": "validation", "test": "test"}.items():
        if list(theirs[their_name]["sentence"]) != list(our[our_name]["text"]):
            raise SystemExit(f"the texts of {our_name} differ")
        if list(theirs[their_name]["labels"]) != list(our[our_name]["labels"]):
            raise SystemExit(f"the labels of {our_name} differ")


def as_table(runs: list[Measured], clips: int, seconds: float, speech: str) -> str:
    """Return a Markdown table; ratios are against the plain recipe with as many processes as ours."""
    plain_run = [run for run in runs if run.name.startswith("plain")][-1]
    lines = [
        f"{clips} clips of {seconds:g} s ({speech}, mp3 at {RATE // 1000} kHz), whole processes, same text and labels",
        machine(),
        "",
        "| | seconds | clips/s | ratio | bytes a clip | ratio | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        seconds, ratio = run.usage.seconds, plain_run.usage.seconds / run.usage.seconds
        lines.append(
            f"| {run.name} | {seconds:.1f} | {clips / seconds:.1f} | {ratio:.1f} "
            f"| {run.size / clips:,.0f} | 1/{plain_run.size / run.size:.1f} | {run.usage.memory / 1e6:,.0f} MB |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
