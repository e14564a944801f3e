"""Log-mel spectrograms as Whisper defines them, computed for the real length of the audio only.

Reference: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), section 2.2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from asr.shared.audio import SAMPLE_RATE

if TYPE_CHECKING:
    import torch

N_FFT = 400
HOP_LENGTH = 160
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
MIN_POWER = 1e-10
SILENCE = math.log10(MIN_POWER)
DYNAMIC_RANGE = 8.0
TAIL_FRAMES, STEP_FRAMES = 20, 10


def frames_for(samples: int, window_frames: int) -> int:
    """Return the frames of a shorter window that holds `samples` at 16 kHz and 0.2 s of silence, in steps of 0.1 s.

    Steps keep the number of different shapes small; the window itself is the limit.
    """
    frames = -(-samples // HOP_LENGTH) + TAIL_FRAMES
    return min(-(-frames // STEP_FRAMES) * STEP_FRAMES, window_frames)


class LogMel:
    """Turns waveforms into the log-mel windows that Whisper's encoder reads.

    Args:
        num_mel_bins: 80, or 128 for large-v3 and turbo; `config.num_mel_bins` of the model.
        window_frames: frames of the encoder's window, twice `config.max_source_positions` (3,000 = 30 s).
        device: where the work is done and the result lies.
    """

    def __init__(self, num_mel_bins: int = 80, window_frames: int = 3000, device: str = "cpu") -> None:
        import torch
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(
            num_frequency_bins=1 + N_FFT // 2,
            num_mel_filters=num_mel_bins,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE / 2,
            sampling_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self.filters = torch.from_numpy(filters).to(device, torch.float32).T.contiguous()
        self.hann = torch.hann_window(N_FFT, device=device)
        self.num_mel_bins = num_mel_bins
        self.window_frames = window_frames
        self.device = device

    @property
    def window_samples(self) -> int:
        """Samples at 16 kHz that one encoder window holds."""
        return self.window_frames * HOP_LENGTH

    def __call__(self, waveform: torch.Tensor, frames: int | None = None) -> torch.Tensor:
        """Return the log-mel windows of waveforms.

        Args:
            waveform: float32 in [-1, 1] at 16 kHz, shape (samples,) or (batch, samples); shorter ones of a batch
                end in zeros.
            frames: length of the result, by default the whole window.

        Returns:
            float32, shape (num_mel_bins, frames) or (batch, num_mel_bins, frames): to the rounding of
            float32 the first frames of what WhisperFeatureExtractor gives after padding to the window, at the cost
            of the real length.

        Raises:
            ValueError: the waveform is longer than the window.
        """
        return self.window(self.spectrum(waveform), frames)

    def spectrum(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return log10 of the mel spectrum, before anything that depends on the rest of a window.

        Args:
            waveform: float32 in [-1, 1] at 16 kHz, shape (samples,) or (batch, samples).

        Returns:
            float32, shape (..., num_mel_bins, frames of the real length and 2 or 3 in which it fades).

        Raises:
            ValueError: the waveform is longer than the window.
        """
        import torch

        samples = waveform.shape[-1]
        if samples > self.window_samples:
            raise ValueError(f"{samples / SAMPLE_RATE:.2f} s of audio do not fit a window of {self.window_s:g} s")
        # One analysis window of silence behind the speech: every later frame holds silence alone.
        silence = min(N_FFT, self.window_samples - samples)
        padded = torch.nn.functional.pad(waveform.to(self.device), (0, silence))
        stft = torch.stft(padded, N_FFT, HOP_LENGTH, window=self.hann, return_complex=True)
        power = stft[..., :-1].abs() ** 2
        return torch.clamp(self.filters @ power, min=MIN_POWER).log10()

    def window(self, spectrum: torch.Tensor, frames: int | None = None) -> torch.Tensor:
        """Return what the encoder reads: `spectrum` continued by silence, its range limited, and scaled.

        Args:
            spectrum: as `spectrum` returns it, or several laid end to end.
            frames: length of the result, by default the whole window.
        """
        import torch

        frames = frames or self.window_frames
        silence = max(0, frames - spectrum.shape[-1])
        log_mel = torch.nn.functional.pad(spectrum[..., :frames], (0, silence), value=SILENCE)
        floor = log_mel.amax(dim=(-2, -1), keepdim=True) - DYNAMIC_RANGE
        return (torch.maximum(log_mel, floor) + 4.0) / 4.0

    def frames_for(self, samples: int) -> int:
        """Return the frames of a shorter window that holds `samples`; see `frames_for`."""
        return frames_for(samples, self.window_frames)

    @property
    def window_s(self) -> float:
        """Seconds that one encoder window holds."""
        return self.window_frames / FRAMES_PER_SECOND
