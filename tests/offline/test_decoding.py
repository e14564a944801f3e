"""Decoding: every waveform gets its own text, in its own place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from asr.offline.decoding import Transcriber, quietest
from asr.offline.precision import Precision
from asr.offline.whisper import attach_lora, load_whisper
from asr.shared.audio import SAMPLE_RATE, encode_flac, load_audio
from asr.shared.clips import pack_spectrum, spectrum_of
from asr.shared.processor import load_processor
from config import Decoding, Lora

CPU = Precision("cpu", "none", torch.float32)


@pytest.fixture(scope="module")
def transcriber(mini_model):
    model = attach_lora(load_whisper(mini_model, CPU), Lora())
    processor = load_processor(mini_model, "Korean", "transcribe")
    return Transcriber.of(model, processor, CPU, Decoding(per_device_eval_batch_size=2, generation_max_length=24))


def noise(seconds: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * SAMPLE_RATE)).astype(np.float32)


def test_order_and_batches_do_not_change_the_text(transcriber):
    clips = [noise(seconds, seed) for seed, seconds in enumerate([1.0, 4.9, 0.3, 2.2, 3.1])]
    together = transcriber.transcribe(clips)
    assert together == [transcriber.transcribe([clip])[0] for clip in clips]


@pytest.mark.parametrize("trimmed", [False, True])
def test_clips_of_the_bundle_are_heard_alike_however_they_are_stored(transcriber, monkeypatch, trimmed):
    """As FLAC, as log-mel, and as the waveforms that the FLAC gives back."""
    monkeypatch.setattr(transcriber, "trimmed", trimmed)
    clips = [encode_flac(noise(seconds, seed)) for seed, seconds in enumerate([1.0, 4.9, 0.3, 2.2, 5.0])]
    lengths = [len(load_audio(clip)) / SAMPLE_RATE for clip in clips]
    sound = [{"audio": {"bytes": clip}, "duration_s": s} for clip, s in zip(clips, lengths, strict=True)]
    stored = [
        {"log_mel": pack_spectrum(spectrum_of(row, transcriber.log_mel)), "duration_s": row["duration_s"]}
        for row in sound
    ]
    heard = transcriber.transcribe([load_audio(clip) for clip in clips])
    assert transcriber.transcribe_clips(Dataset.from_list(sound)) == heard
    assert transcriber.transcribe_clips(Dataset.from_list(stored)) == heard
    assert len(set(heard)) > 1, "texts that are all the same would prove nothing"


def test_each_clip_is_opened_once_and_when_its_turn_comes(transcriber):
    """A test split of a hundred hours does not lie in memory."""

    class Watched:
        def __init__(self, rows):
            self.rows, self.opened = rows, []

        def __getitem__(self, key):
            if isinstance(key, str):
                return [row[key] for row in self.rows]
            self.opened.append(key)
            return self.rows[key]

    rows = [{"audio": {"bytes": encode_flac(noise(s, 0))}, "duration_s": s} for s in (1.0, 3.0, 2.0, 0.5, 4.0)]
    watched = Watched(rows)
    assert len(transcriber.transcribe_clips(watched)) == 5
    assert watched.opened == [4, 1, 2, 0, 3], "the longest first"


def test_training_goes_on_as_it_was(transcriber):
    """Evaluation leaves neither evaluation mode nor missing gradients behind."""
    transcriber.writer.model.train()
    transcriber.transcribe([noise(1, 0)])
    assert transcriber.writer.model.training
    assert torch.is_grad_enabled()


def test_audio_longer_than_the_window_is_cut_in_silence_and_loses_nothing(transcriber):
    """12 s for a window of 5 s: three pieces that add up, cut where it was quiet."""
    speech = noise(12, 1)
    speech[int(4.0 * SAMPLE_RATE) : int(4.3 * SAMPLE_RATE)] = 0
    speech[int(8.1 * SAMPLE_RATE) : int(8.4 * SAMPLE_RATE)] = 0
    pieces = transcriber.pieces(speech)
    np.testing.assert_array_equal(np.concatenate(pieces), speech)
    ends = np.cumsum([len(piece) for piece in pieces[:-1]]) / SAMPLE_RATE
    assert 4.0 < ends[0] < 4.3
    assert 8.1 < ends[1] < 8.4
    assert max(map(len, pieces)) <= 5 * SAMPLE_RATE


def test_quietest_place_is_found():
    waveform = np.ones(32_000, dtype=np.float32)
    waveform[20_000:22_000] = 0
    assert 20_000 <= quietest(waveform, 8_000, 32_000) <= 22_000


def test_prompt_holds_language_and_task(transcriber):
    """They are given at every call: a reloaded generation configuration may not have them."""
    names = transcriber.writer.tokenizer.convert_ids_to_tokens(transcriber.writer.prompt)
    assert names == ["<|startoftranscript|>", "<|ko|>", "<|transcribe|>", "<|notimestamps|>"]


def test_windows_that_are_cut_are_decoded_more_at_a_time(transcriber, monkeypatch):
    """Two whole windows of 5 s take the room of eight of 1 s; more than four times as many gain nothing."""
    samples = [SAMPLE_RATE] * 20
    assert [len(batch.places) for batch in transcriber.plan(samples)] == [2] * 10
    monkeypatch.setattr(transcriber, "trimmed", True)
    batches = transcriber.plan(samples)
    assert [len(batch.places) for batch in batches] == [8, 8, 4]
    assert {batch.frames for batch in batches} == {120}
    assert [len(batch.places) for batch in transcriber.plan([3 * SAMPLE_RATE] * 5)] == [2, 2, 1]


def test_plan_holds_every_piece_once_and_the_longest_first(transcriber):
    seconds = [1.0, 4.0, 2.0, 0.5, 3.0]
    places = [place for batch in transcriber.plan([int(s * SAMPLE_RATE) for s in seconds]) for place in batch.places]
    assert places == [1, 4, 2, 0, 3]
