"""Augmentation of the training clips, drawn afresh in each epoch: waveforms in the loader, spectra in the model."""

from __future__ import annotations

import io

import numpy as np
import torch
from transformers.models.whisper.modeling_whisper import WhisperModel

from asr.offline.noise import NoiseFiles
from asr.shared.audio import SAMPLE_RATE
from config import Augmentation
from utils import UserError

SNR_RANGE_DB = 20.0
TELEPHONE_RATE = 8_000
# The speech band, and how far beyond it the filter takes to close.
BAND_HZ, BAND_GAIN = (200.0, 300.0, 3400.0, 3600.0), (0.0, 1.0, 1.0, 0.0)
MASK_LENGTH = 10


class Augmenter:
    """Changes waveforms as the settings say. It draws from the generator that it is given, and from nothing else.

    It can be pickled, for workers that are fresh processes: of noise it holds the names of files alone.

    Args:
        settings: the knobs.

    Raises:
        UserError: `noise_dir` holds no recording that can be read.
    """

    def __init__(self, settings: Augmentation) -> None:
        self.settings = settings
        folder = None if settings.noise_snr_db is None else settings.noise_dir
        self._noise_files = None if folder is None else NoiseFiles(folder)

    @property
    def changes_waveforms(self) -> bool:
        """Whether any setting needs the waveform."""
        return bool(_waveform_flags(self.settings))

    def speeds(self, durations_s: list[float], longest_s: float, random: np.random.Generator) -> list[float]:
        """Draw a speed for each clip, uniformly around 1.

        Args:
            durations_s: of the clips.
            longest_s: what a clip may last after the change; no clip is longer now.
            random: asked for one number a clip, and for none when speeds are not changed.

        Returns:
            A factor for each clip: at 1.1 it lasts 1/1.1 as long. A clip that would outgrow `longest_s` is played
            just fast enough to fit.
        """
        share = self.settings.speed_perturb
        if not share:
            return [1.0] * len(durations_s)
        drawn = random.uniform(1 - share, 1 + share, len(durations_s))
        return np.maximum(drawn, np.asarray(durations_s, dtype=np.float64) / longest_s).tolist()

    def __call__(self, waveform: np.ndarray, speed: float, random: np.random.Generator) -> np.ndarray:
        """Return the changed waveform: its speed first, then noise, the telephone, and the gain.

        Args:
            waveform: float32 in [-1, 1] at 16 kHz, shape (samples,); it is not written to.
            speed: as `speeds` drew it.
            random: a generator of this clip in this epoch.

        Returns:
            float32 in [-1, 1], shape (round(samples / speed),): at most ceil(samples / speed), thus never more frames
            than ceil(frames / speed). The very same array when nothing is to be done.
        """
        knobs, changed = self.settings, waveform
        if speed != 1.0:
            changed = play_at(changed, speed)
        if knobs.noise_snr_db is not None:
            snr_db = random.uniform(knobs.noise_snr_db, knobs.noise_snr_db + SNR_RANGE_DB)
            changed = add_noise(changed, self._noise(len(changed), random), snr_db)
        if knobs.telephone_probability and random.random() < knobs.telephone_probability:
            changed = over_telephone(changed)
        if knobs.gain_db:
            changed = changed * np.float32(10 ** (random.uniform(-knobs.gain_db, knobs.gain_db) / 20))
        return changed if changed is waveform else changed.clip(-1.0, 1.0)

    def _noise(self, samples: int, random: np.random.Generator) -> np.ndarray:
        if self._noise_files is None:
            return random.standard_normal(samples, dtype=np.float32)
        return self._noise_files.stretch(samples, random)


def play_at(waveform: np.ndarray, speed: float) -> np.ndarray:
    """Play a clip faster or slower, as a tape does: its pitch changes with it.

    Source: Ko et al., "Audio augmentation for speech recognition" (2015).

    Args:
        waveform: float32 at 16 kHz, shape (samples,).
        speed: 1.1 is a tenth faster.

    Returns:
        float32, shape (round(samples / speed),).
    """
    import soxr

    changed = soxr.resample(waveform, SAMPLE_RATE * speed, SAMPLE_RATE, quality="HQ")
    samples = round(len(waveform) / speed)
    # soxr rounds as we do; what windows have room for must not hang on its version.
    return np.pad(changed[:samples], (0, max(0, samples - len(changed))))


def add_noise(waveform: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise at a signal-to-noise ratio: of the mean powers of the whole clip and of the whole noise.

    A sum beyond full scale is made softer as a whole, since clipping would be another noise. A silent clip stays so.

    Args:
        waveform: float32, shape (samples,).
        noise: of the same shape.
        snr_db: the ratio in dB.
    """
    speech_power, noise_power = _power(waveform), _power(noise)
    if not speech_power or not noise_power:
        return waveform
    mixed = waveform + noise * np.float32(np.sqrt(speech_power / noise_power / 10 ** (snr_db / 10)))
    return mixed / max(1.0, np.abs(mixed).max())


def _power(waveform: np.ndarray) -> float:
    return float(np.mean(np.square(waveform, dtype=np.float64))) if waveform.size else 0.0


def over_telephone(waveform: np.ndarray) -> np.ndarray:
    """Return the clip as a telephone line gives it: 300 to 3,400 Hz (ITU-T G.712), 8-bit mu-law at 8 kHz (G.711).

    Args:
        waveform: float32 at 16 kHz, shape (samples,); beyond [-1, 1] it clips, as on the line.

    Returns:
        float32, of the same shape and not delayed.
    """
    import soxr

    narrow = soxr.resample(waveform, SAMPLE_RATE, TELEPHONE_RATE, quality="HQ")
    heard = _through_mu_law(_within_band(narrow))
    return soxr.resample(heard, TELEPHONE_RATE, SAMPLE_RATE, quality="HQ")[: len(waveform)]


def _within_band(narrow: np.ndarray) -> np.ndarray:
    # A power of two is fastest, and a tenth of a second of zeros keeps the end from ringing into the beginning.
    size = 1 << (len(narrow) + TELEPHONE_RATE // 10).bit_length()
    gain = np.interp(np.fft.rfftfreq(size, 1 / TELEPHONE_RATE), BAND_HZ, BAND_GAIN).astype(np.float32)
    return np.fft.irfft(np.fft.rfft(narrow, size) * gain, size)[: len(narrow)]


def _through_mu_law(narrow: np.ndarray) -> np.ndarray:
    """Encode and decode with libsndfile's G.711."""
    import soundfile

    line = io.BytesIO()
    form = {"samplerate": TELEPHONE_RATE, "subtype": "ULAW", "format": "RAW"}
    soundfile.write(line, narrow.clip(-1.0, 1.0), **form)
    line.seek(0)
    return soundfile.read(line, dtype="float32", channels=1, **form)[0]


def require_waveforms(settings: Augmentation, rows_have_audio: bool) -> None:
    """Refuse what stored spectra cannot give: an augmentation of waveforms would silently do nothing.

    Args:
        settings: the knobs.
        rows_have_audio: the bundle's rows hold audio, not log-mel.

    Raises:
        UserError: waveforms are to be changed, and there are none.
    """
    flags = _waveform_flags(settings)
    if flags and not rows_have_audio:
        verb = "change" if len(flags) > 1 else "changes"
        raise UserError(
            f"{' and '.join(flags)} {verb} waveforms, and this bundle stores features: prepare it with --store audio"
        )


def _waveform_flags(settings: Augmentation) -> list[str]:
    """Return the knobs of waveforms that are turned on, spelled as flags."""
    knobs = ("speed_perturb", "gain_db", "noise_snr_db", "telephone_probability")
    values = {name: getattr(settings, name) for name in knobs}
    on = {name: value for name, value in values.items() if value or (name == "noise_snr_db" and value is not None)}
    return [f"--{name.replace('_', '-')} {value:g}" for name, value in on.items()]


def hide_stretches(model: torch.nn.Module, settings: Augmentation) -> None:
    """Turn the model's own SpecAugment on or off (Park et al., 2019; time warping is not done).

    transformers hides stretches of `input_features` in each forward pass of a model that trains, and in no other; it
    draws them from numpy's global generator, whose state Trainer keeps in its checkpoints.

    Args:
        model: Whisper, plain or with an adapter.
        settings: the knobs.
    """
    config = next(module for module in model.modules() if isinstance(module, WhisperModel)).config
    config.apply_spec_augment = settings.apply_spec_augment
    config.mask_time_prob, config.mask_feature_prob = settings.mask_time_prob, settings.mask_feature_prob
    config.mask_time_length = config.mask_feature_length = MASK_LENGTH
    # Whisper's least of 2 stretches would hide a fifth of a window of 1 s; without it the share holds on average.
    config.mask_time_min_masks = config.mask_feature_min_masks = 0
