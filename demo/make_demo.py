"""python demo/make_demo.py [corpus] [model] [--device cuda]

Makes the embedded demo again: a Korean corpus in Common Voice's layout, and a tiny Whisper that has never heard the
corpus's voices. Needs `pip install -r demo/requirements.txt`; everything is drawn from one seed.

  corpus  demo/cv-corpus-demo/ko: clips/*.mp3 at 48 kHz, train.tsv, dev.tsv, test.tsv
  model   demo/tiny-whisper-ko: a Hugging Face directory (safetensors, tokenizer, generation_config.json)

The corpus takes half a minute on 2 cores, the model about an hour and a half. The shipped one was trained in several
sessions, the first three stages in float32, and stored in float16 in between: made again, it will be of like quality,
not the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
import multiprocessing
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

DEMO = Path(__file__).resolve().parent
sys.path.insert(0, str(DEMO.parent))

from demo.sentences import draw_sentences  # noqa: E402
from demo.voices import Speaker, Voice  # noqa: E402

CORPUS = DEMO / "cv-corpus-demo" / "ko"
MODEL = DEMO / "tiny-whisper-ko"
SEED = 2026
SPLITS = {"train": 480, "dev": 40, "test": 80}
LONGEST = 24  # characters
BASE_SENTENCES = 8_000
COLUMNS = ["client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes"]
COLUMNS += ["age", "gender", "accents", "variant", "locale", "segment"]

# The base model hears these, at an unhurried pace and over a clean channel.
BASE_VOICES = [
    Voice(variant, rate, pitch)
    for variant in ["f1", "f2", "f4", "m1", "m3", "m7"]
    for rate, pitch in [(140, 45), (160, 55), (180, 50)]
]
# The corpus has creaking, shaking and robotic voices that talk fast, over a narrow, hissing line.
CORPUS_VOICES = {
    "train": [
        Voice(v, rate, pitch) for v in ["croak", "Tweaky", "robosoft5"] for rate, pitch in [(215, 40), (235, 55)]
    ],
    "dev": [Voice(v, 225, 48) for v in ["croak", "Tweaky", "robosoft5"]],
    "test": [Voice(v, 228, 45) for v in ["croak", "Tweaky", "robosoft5"]],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="corpus, model (default: both)")
    parser.add_argument("--device", default="cpu", help="where the model is trained: cpu or cuda")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the sentences and steps, for a trial")
    args = parser.parse_args()
    parts = args.parts or ["corpus", "model"]
    if "corpus" in parts:
        make_corpus()
    if "model" in parts:
        make_model(args.device, args.scale)


def corpus_sentences() -> dict[str, list[str]]:
    count = sum(SPLITS.values())
    drawn = [text for text in draw_sentences(2 * count, SEED) if len(text) <= LONGEST][:count]
    ends = np.cumsum(list(SPLITS.values()))
    return {split: drawn[end - SPLITS[split] : end] for split, end in zip(SPLITS, ends, strict=True)}


def base_sentences() -> list[str]:
    """What the base model reads: no sentence of the corpus is among them."""
    held_out = {sentence for split in corpus_sentences().values() for sentence in split}
    return draw_sentences(BASE_SENTENCES, SEED + 1, exclude=held_out)


def make_corpus() -> None:
    clips = CORPUS / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    for old in clips.glob("*.mp3"):
        old.unlink()
    for split, sentences in corpus_sentences().items():
        voices = [CORPUS_VOICES[split][i % len(CORPUS_VOICES[split])] for i in range(len(sentences))]
        spoken = speak(list(zip(sentences, voices, strict=True)))
        rows = [write_clip(split, i, *line) for i, line in enumerate(zip(sentences, voices, spoken, strict=True))]
        with open(CORPUS / f"{split}.tsv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(f"{split}: {len(rows)} clips, {sum(map(len, spoken)) / 16_000 / 60:.1f} min")


def write_clip(split: str, index: int, sentence: str, voice: Voice, samples: np.ndarray) -> dict[str, str]:
    rng = np.random.default_rng([SEED, index, len(sentence)])
    waveform = narrow_line(samples.astype(np.float32) / 32768, rng)
    name = f"common_voice_ko_{split}_{index:04d}.mp3"
    write_mp3(CORPUS / "clips" / name, waveform)
    row = dict.fromkeys(COLUMNS, "")
    client = hashlib.sha256(f"{split} {voice}".encode()).hexdigest()
    sentence_id = hashlib.sha256(sentence.encode()).hexdigest()
    return row | {
        "client_id": client,
        "path": name,
        "sentence_id": sentence_id,
        "sentence": sentence,
        "up_votes": "2",
        "down_votes": "0",
        "locale": "ko",
    }


def write_mp3(path: Path, waveform: np.ndarray) -> None:
    """48 kHz like Common Voice's clips, at the lowest bit rate that MP3 has there."""
    import av
    import soxr

    samples = soxr.resample(waveform, 16_000, 48_000, quality="HQ")
    with av.open(path, "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}) as file:
        stream = file.add_stream("libmp3lame", rate=48_000, layout="mono", format="fltp", bit_rate=32_000)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def narrow_line(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """100 to 6,000 Hz, and hiss 34 to 40 dB under the speech: enough to lead the base model astray."""
    from scipy.signal import butter, sosfilt

    band = butter(4, [100, 6000], btype="bandpass", fs=16_000, output="sos")
    speech = sosfilt(band, waveform)
    noise = sosfilt(band, rng.standard_normal(len(speech)))
    snr = 10 ** (-rng.uniform(34, 40) / 20)
    noisy = speech / speech.std() + snr * noise / noise.std()
    return (0.08 * noisy).clip(-1, 1).astype(np.float32)


def make_model(device: str, scale: float) -> None:
    from transformers import WhisperFeatureExtractor, WhisperProcessor

    from demo import tiny_whisper

    sentences = base_sentences()[: math.ceil(BASE_SENTENCES * scale)]
    rng = random.Random(SEED)
    spoken = speak([(sentence, rng.choice(BASE_VOICES)) for sentence in sentences])
    clips = [tiny_whisper.Clip(samples, text) for samples, text in zip(spoken, sentences, strict=True)]
    print(f"base: {len(clips)} clips, {sum(len(clip.samples) for clip in clips) / 16_000 / 3600:.1f} h", flush=True)
    tokenizer = tiny_whisper.build_tokenizer(sentences)
    model = tiny_whisper.build_model(tokenizer, SEED)
    processor = WhisperProcessor(WhisperFeatureExtractor(feature_size=model.config.num_mel_bins), tokenizer)
    stages = [replace(stage, steps=max(1, int(stage.steps * scale))) for stage in tiny_whisper.STAGES]
    tiny_whisper.train(model, processor, clips, stages, SEED, device)
    model.half().save_pretrained(MODEL)
    processor.save_pretrained(MODEL)
    processor.feature_extractor.save_pretrained(MODEL)
    print(f"wrote {MODEL}")


def speak(lines: list[tuple[str, Voice]], chunk: int = 100) -> list[np.ndarray]:
    """Speak every line: int16 at 16 kHz. A fresh process a chunk, as espeak-ng's state goes from clip to clip."""
    chunks = [lines[i : i + chunk] for i in range(0, len(lines), chunk)]
    with multiprocessing.get_context("spawn").Pool(maxtasksperchild=1) as pool:
        return [clip for spoken in pool.imap(_speak_chunk, chunks, chunksize=1) for clip in spoken]


def _speak_chunk(lines: list[tuple[str, Voice]]) -> list[np.ndarray]:
    speaker = Speaker()
    return [np.round(speaker.say(text, voice).clip(-1, 1) * 32767).astype(np.int16) for text, voice in lines]


if __name__ == "__main__":
    main()
