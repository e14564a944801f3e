"""Augmentation: each knob does what it says, all of it can be repeated, and none of it silently does nothing."""

from __future__ import annotations

import json
import math
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from asr.offline.augmentation import (
    SNR_RANGE_DB,
    Augmenter,
    add_noise,
    hide_stretches,
    over_telephone,
    play_at,
    require_waveforms,
)
from asr.offline.encoder_window import encoder_window
from asr.offline.noise import NoiseFiles
from asr.offline.precision import Precision
from asr.offline.trainer import build_trainer
from asr.offline.whisper import attach_lora, load_whisper, save_weights
from asr.offline.windows import frames_of
from asr.shared.audio import SAMPLE_RATE
from config import Augmentation, Lora, TrainOffline
from tests.sounds import noise, sine, wav
from utils import UserError, log

REPEATABLE = settings(derandomize=True, deadline=None, database=None, max_examples=60)
CPU = Precision("cpu", "none", torch.float32)
LONGEST = 30.0
KNOBS = {
    "gain": Augmentation(gain_db=6),
    "noise": Augmentation(noise_snr_db=5),
    "telephone": Augmentation(telephone_probability=1),
}
EVERYTHING = Augmentation(speed_perturb=0.1, gain_db=6, noise_snr_db=5, telephone_probability=0.5)


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def hertz_of(tone: np.ndarray) -> float:
    """The strongest frequency of the middle half, where no filter fades in or out."""
    middle = tone[len(tone) // 4 : -len(tone) // 4]
    return float(np.argmax(np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 18)))) * SAMPLE_RATE / (1 << 18)


def energy_db(waveform: np.ndarray, low: float, high: float) -> float:
    spectrum = np.abs(np.fft.rfft(waveform.astype(np.float64) * np.hanning(len(waveform)))) ** 2
    hertz = np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)
    return 10 * math.log10(spectrum[(hertz >= low) & (hertz < high)].sum())


def snr_db(clean: np.ndarray, noisy: np.ndarray) -> float:
    return 10 * math.log10(np.mean(clean.astype(np.float64) ** 2) / np.mean((noisy.astype(np.float64) - clean) ** 2))


@pytest.fixture
def noises(tmp_path: Path) -> Path:
    """A folder with two recordings and what lies beside recordings."""
    folder = tmp_path / "noises"
    (folder / "street").mkdir(parents=True)
    (folder / "hum.wav").write_bytes(wav(sine(120, 0.4, SAMPLE_RATE)))
    (folder / "street" / "cars.FLAC").write_bytes(wav(noise(2, 8000), 8000, file_format="FLAC"))
    (folder / "LICENSE").write_text("free")
    (folder / "._hum.wav").write_bytes(b"what macOS leaves on a memory stick")
    return folder


# Off by default


def test_all_off_gives_the_very_same_array():
    augmenter, clip = Augmenter(Augmentation()), noise(1)
    random = seeded()
    assert augmenter(clip, 1.0, random) is clip
    assert augmenter.speeds([1.0, 2.0], LONGEST, random) == [1.0, 1.0]
    assert not augmenter.changes_waveforms
    assert random.bit_generator.state == seeded().bit_generator.state, "a random number was drawn for nothing"


@pytest.mark.parametrize("knob", KNOBS)
def test_each_knob_alone_changes_the_sound(knob):
    """And the clip that it was given stays as it was: the same row is heard again in the next epoch."""
    clip = noise(1)
    before = clip.copy()
    augmenter = Augmenter(KNOBS[knob])
    heard = augmenter(clip, 1.0, seeded())
    assert augmenter.changes_waveforms
    assert heard.dtype == np.float32
    assert heard.shape == clip.shape
    assert np.abs(heard - clip).max() > 0.01
    assert np.array_equal(clip, before)


# Chance


@pytest.mark.parametrize("knobs", [*KNOBS.values(), EVERYTHING], ids=[*KNOBS, "everything"])
def test_equal_seeds_agree_and_others_differ(knobs):
    """A window's seed differs in each epoch: what is heard is fresh, and the same in a resumed run."""
    augmenter, clip = Augmenter(knobs), noise(1)
    first, again, other = (augmenter(clip, 1.0, seeded(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert knobs is KNOBS["telephone"] or not np.array_equal(first, other)


def test_what_was_heard_before_does_not_matter(noises):
    """A worker that has met a broken file, or has it in its cache, hears what a fresh one hears."""
    (noises / "broken.wav").write_bytes(b"RIFF")
    knobs = Augmentation(noise_snr_db=0, noise_dir=noises)
    old, clip = Augmenter(knobs), noise(0.5)
    for seed in range(12):
        old(clip, 1.0, seeded(seed))
    for seed in range(6):
        assert np.array_equal(old(clip, 1.0, seeded(seed)), Augmenter(knobs)(clip, 1.0, seeded(seed)))


def test_a_fresh_process_hears_the_same(noises):
    """On Windows and macOS the loader's workers are spawned: the object crosses by pickle, and is small."""
    augmenter, clip = Augmenter(Augmentation(noise_snr_db=5, noise_dir=noises, gain_db=3)), noise(0.5)
    here = augmenter(clip, 1.05, seeded(7))
    assert len(pickle.dumps(augmenter)) < 2000, "the recordings went along"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        assert np.array_equal(processes.submit(augmenter, clip, 1.05, seeded(7)).result(), here)


@REPEATABLE
@given(
    st.integers(1, 6000), st.floats(0.5, 1.5), st.integers(0, 1000), st.sampled_from([0.0, 1e-30, 1e-4, 0.3, 1.0]),
    st.sampled_from([*KNOBS.values(), EVERYTHING, Augmentation(noise_snr_db=-20, gain_db=40)]),
)  # fmt: skip
def test_any_clip_comes_out_whole(samples, speed, seed, loudness, knobs):
    """Of the promised length, in full scale, with numbers only; silence stays silence."""
    clip = (loudness * seeded(seed).uniform(-1, 1, samples)).astype(np.float32)
    heard = Augmenter(knobs)(clip, speed, seeded(seed))
    assert heard.dtype == np.float32
    assert heard.shape == (round(samples / speed),)
    assert np.isfinite(heard).all()
    assert np.abs(heard).max(initial=0) <= 1
    assert loudness or not heard.any()


# Speed


@pytest.mark.parametrize("speed", [0.8, 0.9, 1.1, 1.25])
def test_speed_changes_pitch_and_length_by_the_factor(speed):
    heard = play_at(sine(440, 2, SAMPLE_RATE), speed)
    assert hertz_of(heard) == pytest.approx(440 * speed, abs=0.5)
    assert len(heard) == round(2 * SAMPLE_RATE / speed)


@REPEATABLE
@given(st.integers(1, 480_000), st.floats(0.5, 1.5))
def test_a_clip_never_outgrows_the_frames_that_a_window_keeps_for_it(samples, speed):
    """The sampler reserves ceil(frames / speed) before anything is resampled."""
    assert frames_of(round(samples / speed)) <= math.ceil(frames_of(samples) / speed)


@REPEATABLE
@given(st.lists(st.integers(1, 480_000), min_size=1, max_size=20), st.floats(0.01, 0.5), st.integers(0, 9))
def test_speeds_keep_within_the_share_and_every_clip_within_the_window(samples, share, seed):
    """Durations are stored as float32: a clip of the window's full length must not gain a sample by their rounding."""
    durations = [float(np.float32(n / SAMPLE_RATE)) for n in samples]
    speeds = Augmenter(Augmentation(speed_perturb=share)).speeds(durations, LONGEST, seeded(seed))
    assert len(speeds) == len(samples)
    assert all(1 - share <= speed <= 1 + share for speed in speeds)
    assert all(round(n / speed) <= LONGEST * SAMPLE_RATE for n, speed in zip(samples, speeds, strict=True))


def test_speeds_are_uniform_and_cut_where_the_window_ends():
    augmenter = Augmenter(Augmentation(speed_perturb=0.1))
    speeds = np.array(augmenter.speeds([3.0] * 4000, LONGEST, seeded()))
    assert np.histogram(speeds, 4, (0.9, 1.1))[0].min() > 900
    assert min(augmenter.speeds([29.0] * 50, LONGEST, seeded())) == 29 / 30
    assert augmenter.changes_waveforms


# Noise


@pytest.mark.parametrize("least", [0.0, 5.0, 15.0, 40.0])
@pytest.mark.parametrize("from_files", [False, True], ids=["white", "files"])
def test_noise_has_the_ratio_that_was_drawn(noises, least, from_files):
    augmenter = Augmenter(Augmentation(noise_snr_db=least, noise_dir=noises if from_files else None))
    clip = sine(440, 1, SAMPLE_RATE) * np.float32(0.3)
    ratios = [snr_db(clip, augmenter(clip, 1.0, seeded(seed))) for seed in range(12)]
    drawn = [seeded(seed).uniform(least, least + SNR_RANGE_DB) for seed in range(12)]
    assert ratios == pytest.approx(drawn, abs=0.1)
    assert max(ratios) - min(ratios) > SNR_RANGE_DB / 2


def test_loud_noise_keeps_its_ratio_and_is_not_clipped():
    """At -10 dB the noise alone passes full scale; cut off there it would be another noise, of another ratio."""
    clip, hiss = sine(440, 1, SAMPLE_RATE), noise(1)
    heard = add_noise(clip, hiss, -10)
    assert np.abs(heard).max() == pytest.approx(1, abs=1e-6)
    # What was added is what remains of the sum when the clip is taken off as loud as it now is.
    parts = np.linalg.lstsq(np.stack([clip, hiss], axis=1).astype(np.float64), heard, rcond=None)[0]
    assert np.allclose(parts[0] * clip + parts[1] * hiss, heard, atol=1e-5)
    assert snr_db(parts[0] * clip, parts[0] * clip + parts[1] * hiss) == pytest.approx(-10, abs=0.01)


def test_without_power_there_is_nothing_to_scale():
    clip, silence, nothing = noise(0.1), np.zeros(1600, np.float32), np.zeros(0, np.float32)
    assert np.array_equal(add_noise(clip, silence, 5), clip)
    assert not add_noise(silence, clip, 5).any()
    assert add_noise(nothing, nothing, 5).size == 0


def test_every_recording_is_used_and_a_short_one_begins_again(noises):
    files = NoiseFiles(noises)
    assert files.names == ["hum.wav", "street/cars.FLAC"]
    stretches = [files.stretch(SAMPLE_RATE, seeded(seed)) for seed in range(20)]
    hums = [stretch for stretch in stretches if abs(hertz_of(stretch) - 120) < 2]
    assert 0 < len(hums) < len(stretches)
    assert all(len(stretch) == SAMPLE_RATE for stretch in stretches)
    assert np.array_equal(hums[0][:6400], hums[0][6400:12800])
    assert len({stretch.tobytes() for stretch in hums}) > 1, "always from the beginning"


def test_a_silent_stretch_of_a_recording_is_not_taken(tmp_path):
    knock = np.zeros(SAMPLE_RATE * 10, np.float32)
    knock[5 * SAMPLE_RATE :][:10] = 0.5
    (tmp_path / "knock.wav").write_bytes(wav(knock))
    files = NoiseFiles(tmp_path)
    assert all(files.stretch(800, seeded(seed)).any() for seed in range(10))


def test_a_broken_recording_is_named_once_and_another_is_taken(noises, caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    (noises / "broken.wav").write_bytes(b"RIFF")
    (noises / "silent.wav").write_bytes(wav(np.zeros(800)))
    augmenter, clip = Augmenter(Augmentation(noise_snr_db=0, noise_dir=noises)), noise(0.2)
    heard = [augmenter(clip, 1.0, seeded(seed)) for seed in range(30)]
    assert all(np.abs(one - clip).max() > 0.001 for one in heard)
    for name in ("broken.wav", "silent.wav"):
        assert sum(name in record.getMessage() for record in caplog.records) == 1


def test_a_folder_without_recordings_is_refused_at_once(tmp_path):
    """Before hours of training, not in a worker in the middle of them."""
    with pytest.raises(UserError, match=r"--noise-dir .*missing: there is no such folder"):
        Augmenter(Augmentation(noise_snr_db=5, noise_dir=tmp_path / "missing"))
    (tmp_path / "notes.txt").write_text("no sound")
    with pytest.raises(UserError, match=r"--noise-dir .* holds no recording"):
        Augmenter(Augmentation(noise_snr_db=5, noise_dir=tmp_path))
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"--noise-dir .* holds no recording") as refused:
        Augmenter(Augmentation(noise_snr_db=5, noise_dir=tmp_path))
    assert "\n" not in str(refused.value)


# Telephone


def test_the_telephone_passes_its_band_and_nothing_else():
    clip = noise(3)
    heard = over_telephone(clip)
    for low, high in ((20, 200), (3600, 8000)):
        assert energy_db(heard, low, high) < energy_db(clip, low, high) - 20
    assert energy_db(heard, 400, 3300) == pytest.approx(energy_db(clip, 400, 3300), abs=0.5)


@pytest.mark.parametrize("samples", [SAMPLE_RATE, SAMPLE_RATE + 1])
def test_the_telephone_does_not_delay(samples):
    """Timestamps and the clips laid end to end would be off."""
    clip = noise(1.1)[:samples]
    heard = over_telephone(clip)
    assert len(heard) == samples
    lags = {lag: float(clip[100 : samples - 100] @ np.roll(heard, lag)[100 : samples - 100]) for lag in range(-20, 21)}
    assert max(lags, key=lags.__getitem__) == 0


def test_the_telephone_has_the_grain_of_eight_bits():
    """G.711 gives about 38 dB at any loudness; without its companding a soft tone would drown."""
    for loudness in (0.9, 0.09):
        tone = sine(1000, 1, SAMPLE_RATE) * np.float32(loudness)
        middle = slice(1600, -1600)
        assert 30 < snr_db(tone[middle], over_telephone(tone)[middle]) < 45


def test_a_share_of_the_clips_is_heard_through_the_telephone():
    augmenter, clip = Augmenter(Augmentation(telephone_probability=0.3)), noise(0.05)
    calls = sum(augmenter(clip, 1.0, seeded(seed)) is not clip for seed in range(400))
    assert 80 < calls < 160


# Gain


def test_gain_is_uniform_in_decibels():
    augmenter, clip = Augmenter(Augmentation(gain_db=6)), noise(0.05, loudness=0.01)
    gains = [20 * math.log10(augmenter(clip, 1.0, seeded(seed))[0] / clip[0]) for seed in range(400)]
    assert -6 <= min(gains) < -5.5
    assert 5.5 < max(gains) <= 6
    assert abs(np.mean(gains)) < 0.5


# Bundles without waveforms


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        (Augmentation(speed_perturb=0.1), "--speed-perturb 0.1 changes"),
        (Augmentation(gain_db=6), "--gain-db 6 changes"),
        (Augmentation(noise_snr_db=0), "--noise-snr-db 0 changes"),
        (Augmentation(telephone_probability=0.2, gain_db=3), "--gain-db 3 and --telephone-probability 0.2 change"),
    ],
)
def test_stored_features_cannot_be_augmented(knobs, named):
    """The trap: an augmentation that was frozen into what is stored, or that never happens."""
    with pytest.raises(UserError) as refused:
        require_waveforms(knobs, rows_have_audio=False)
    assert str(refused.value) == (f"{named} waveforms, and this bundle stores features: prepare it with --store audio")
    require_waveforms(knobs, rows_have_audio=True)
    require_waveforms(Augmentation(apply_spec_augment=True), rows_have_audio=False)


def test_a_training_on_stored_features_is_refused_before_the_model_is_loaded(tmp_path):
    rows = Dataset.from_dict({"log_mel": [b""], "text": ["하나"]})
    DatasetDict(train=rows).save_to_disk(tmp_path)
    with pytest.raises(UserError, match="--store audio"):
        build_trainer(TrainOffline(augmentation=KNOBS["gain"]), SimpleNamespace(data_dir=tmp_path), None, CPU)


# SpecAugment


HIDDEN = Augmentation(apply_spec_augment=True, mask_time_prob=0.2, mask_feature_prob=0.3)


def tiny_whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    return WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=250,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, dropout=0.0,
        )
    )  # fmt: skip


def what_the_encoder_reads(model: torch.nn.Module, frames: int = 500, windows: int = 4) -> torch.Tensor:
    """Shape (windows, mel, frames); ones went in."""
    read = []
    whisper = model.get_base_model() if hasattr(model, "get_base_model") else model
    hook = whisper.model.encoder.conv1.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].clone()))
    with encoder_window(model, frames):
        model(input_features=torch.ones(windows, 80, frames), decoder_input_ids=torch.ones(windows, 3).long())
    hook.remove()
    return read[0]


@pytest.mark.parametrize("frames", [500, 150], ids=["whole window", "trimmed window"])
@pytest.mark.parametrize("with_adapter", [False, True], ids=["full", "lora"])
def test_stretches_are_hidden_from_the_encoder_in_training_alone(with_adapter, frames):
    model = attach_lora(tiny_whisper(), Lora(lora_r=2)) if with_adapter else tiny_whisper()
    hide_stretches(model, HIDDEN)
    read = what_the_encoder_reads(model.train(), frames)
    assert (read == 0).any()
    assert (read.sum(1) == 0).any(), "no stretch of time is hidden"
    assert (read.sum(2) == 0).any(), "no mel bins are hidden"
    assert what_the_encoder_reads(model.eval(), frames).all()


def test_the_share_of_hidden_frames_holds_for_short_windows_too():
    """Whisper's own setting hides 2 stretches at least: a fifth of a second of speech, where a twentieth was asked."""
    model = tiny_whisper()
    hide_stretches(model, Augmentation(apply_spec_augment=True, mask_time_prob=0.05))
    model.train()
    np.random.seed(0)
    hidden = [float((what_the_encoder_reads(model, 100) == 0).float().mean()) for _ in range(200)]
    assert np.mean(hidden) == pytest.approx(0.05, abs=0.01)


def test_off_is_off_whatever_the_base_says():
    """A base that was tuned with SpecAugment elsewhere may have it turned on in its config.json."""
    model = tiny_whisper()
    model.config.apply_spec_augment = True
    hide_stretches(model, Augmentation())
    assert what_the_encoder_reads(model.train()).all()


def test_hidden_stretches_go_on_after_a_checkpoint_as_they_would_have(tmp_path):
    """They come from numpy's global generator, which Trainer's checkpoints keep."""

    class Clips(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            features = torch.from_numpy(seeded(i).normal(size=(80, 500)).astype(np.float32))
            return {"input_features": features, "labels": torch.tensor([5 + i, 7, 2])}

    def trained(name: str, **options) -> dict[str, torch.Tensor]:
        model = tiny_whisper()
        hide_stretches(model, HIDDEN)
        arguments = Seq2SeqTrainingArguments(
            str(tmp_path / name), per_device_train_batch_size=2, max_steps=4, save_steps=2, use_cpu=True,
            report_to=[], disable_tqdm=True, learning_rate=1e-2, logging_strategy="no",
        )  # fmt: skip
        Seq2SeqTrainer(model, arguments, train_dataset=Clips()).train(**options)
        return model.state_dict()

    whole = trained("whole")
    np.random.seed(99)
    resumed = trained("resumed", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("with_adapter", [False, True], ids=["full", "lora"])
def test_saved_weights_do_not_carry_the_setting_on(mini_model, tmp_path, with_adapter):
    """A model that somebody trains further elsewhere must not hide stretches unasked."""
    model = load_whisper(mini_model, CPU)
    model = attach_lora(model, Lora(lora_r=2)) if with_adapter else model
    hide_stretches(model, HIDDEN)
    save_weights(model, tmp_path / "weights", "base")
    configs = {file.name: json.loads(file.read_text("utf-8")) for file in (tmp_path / "weights").glob("*config*.json")}
    assert configs
    assert not any(config.get("apply_spec_augment") for config in configs.values())
