"""Clips: the rows of the bundle's dataset, with their audio as FLAC or as log-mel spectrum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from asr.shared.audio import SAMPLE_RATE, load_audio

if TYPE_CHECKING:
    import torch
    from datasets import Features

    from asr.shared.features import LogMel


def clip_columns(store: str) -> Features:
    """Return the columns of a dataset that keeps `audio` or `features`.

    Plain bytes for both: `Audio` encodes with torchcodec alone, and nested lists of numbers take ten times the time.
    """
    from datasets import Features, List, Value

    audio = {"audio": {"bytes": Value("binary"), "path": Value("string")}}
    return Features(
        {
            **(audio if store == "audio" else {"log_mel": Value("binary")}),
            "text": Value("string"),
            "speaker": Value("string"),
            "duration_s": Value("float32"),
            "source": Value("string"),
            "source_id": Value("string"),
            "labels": List(Value("int32")),
        }
    )


def samples_of(row: Mapping[str, Any]) -> int:
    """Return the length of a clip in samples at 16 kHz."""
    return round(row["duration_s"] * SAMPLE_RATE)


def spectrum_of(row: Mapping[str, Any], log_mel: LogMel) -> torch.Tensor:
    """Return the log-mel spectrum of a clip (`LogMel.spectrum`), read where it is stored and made where it is not.

    Returns:
        float32, shape (num_mel_bins, frames).
    """
    import numpy as np
    import torch

    if "log_mel" not in row:
        return log_mel.spectrum(torch.from_numpy(load_audio(row["audio"]["bytes"])))
    stored = np.frombuffer(row["log_mel"], dtype="<f2").reshape(log_mel.num_mel_bins, -1)
    return torch.from_numpy(stored.astype(np.float32))


def pack_spectrum(spectrum: torch.Tensor) -> bytes:
    """Return a spectrum as it is stored: float16, mel bin by mel bin."""
    import torch

    return spectrum.to(torch.float16).numpy().astype("<f2", copy=False).tobytes()
