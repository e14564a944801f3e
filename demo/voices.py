"""Speech from espeak-ng, through its C interface; `espeakng-loader` carries the library and its data."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from asr.shared.audio import resample

SYNCHRONOUS = 2
RATE, VOLUME, PITCH = 1, 2, 3
UTF8 = 1
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """One way of speaking: a variant of espeak-ng's Korean voice, its words a minute, its pitch (0 to 100)."""

    variant: str
    rate: int = 160
    pitch: int = 50


class Speaker:
    """espeak-ng in this process. The library keeps one global state, so make one of these a process."""

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.native_rate = self._library.espeak_Initialize(SYNCHRONOUS, 0, data, 0)
        if self.native_rate <= 0:
            raise RuntimeError("espeak-ng does not start: reinstall espeakng-loader")
        self._chunks: list[np.ndarray] = []
        self._callback = Callback(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: Voice) -> np.ndarray:
        """Return `text` spoken by `voice`: float32 in [-1, 1], mono, 16 kHz, shape (samples,)."""
        library = self._library
        if library.espeak_SetVoiceByName(f"ko+{voice.variant}".encode()) != 0:
            raise ValueError(f"espeak-ng has no voice ko+{voice.variant}")
        library.espeak_SetParameter(RATE, voice.rate, 0)
        library.espeak_SetParameter(PITCH, voice.pitch, 0)
        self._chunks.clear()
        encoded = text.encode()
        library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, UTF8, None, None)
        waveform = np.concatenate(self._chunks).astype(np.float32) / 32768.0
        return _trim(resample(waveform, self.native_rate))

    def _receive(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0


def _trim(waveform: np.ndarray, threshold: float = 0.003, keep: int = 800) -> np.ndarray:
    """Cut silence off both ends, leaving 50 ms."""
    loud = np.flatnonzero(np.abs(waveform) > threshold)
    return waveform[max(0, loud[0] - keep) : loud[-1] + keep] if loud.size else waveform
