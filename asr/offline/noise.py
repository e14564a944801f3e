"""Noise: recordings in a folder, of which random stretches are taken."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from asr.shared.audio import AudioError, read_audio, resample
from utils import UserError, log

ENDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm", ".mp4", ".aif", ".aiff")
# What a process keeps of noise: at most 16 files of 2 minutes in 16 bit, 61 MB.
LIMIT_S, FILES_KEPT = 120.0, 16


class NoiseFiles:
    """The recordings in a folder and in the folders in it; they are opened when they are asked for.

    Args:
        folder: where they are; files of other endings are passed over.

    Raises:
        UserError: the folder is missing, or holds no recording that can be read.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"--noise-dir {folder}: there is no such folder; name one that holds recordings of noise")
        files = (file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
        # Sorted, because folders list their files in another order on another machine.
        names = sorted(f.relative_to(folder).as_posix() for f in files if not f.name.startswith(".") and f.is_file())
        self.folder, self.names = folder, names
        self._unusable: set[str] = set()
        # Known now, or an epoch would break off in a worker.
        self._from(0)

    def stretch(self, samples: int, random: np.random.Generator) -> np.ndarray:
        """Return a random stretch of a random file, which begins again where it is too short.

        Returns:
            float32, shape (samples,), never all zeros.

        Raises:
            UserError: no file can be read any more.
        """
        noise = self._from(int(random.integers(len(self.names))))
        stretch = _looped(noise, int(random.integers(len(noise))), samples)
        # Digital silence has no power to be scaled.
        return stretch if stretch.any() else _looped(noise, int(np.argmax(noise != 0)), samples)

    def _from(self, first: int) -> np.ndarray:
        """Return file number `first`, or the next one that can be used."""
        for number in range(first, first + len(self.names)):
            name = self.names[number % len(self.names)]
            if name in self._unusable:
                continue
            try:
                return read_noise(self.folder / name)
            except AudioError as error:
                self._unusable.add(name)
                log.warning("noise: %s is left out: %s", self.folder / name, error)
        raise UserError(f"--noise-dir {self.folder} holds no recording that can be read ({' '.join(ENDINGS)})")


@functools.lru_cache(maxsize=FILES_KEPT)
def read_noise(path: Path) -> np.ndarray:
    """Return the first two minutes of a recording.

    Returns:
        float16 at 16 kHz, shape (samples,).

    Raises:
        AudioError: missing, empty, not audio, broken, or silence alone.
    """
    audio = read_audio(path, LIMIT_S)
    noise = resample(audio.samples, audio.rate).clip(-1.0, 1.0).astype(np.float16)
    if not noise.any():
        raise AudioError("the file holds silence alone")
    return noise


def _looped(noise: np.ndarray, start: int, samples: int) -> np.ndarray:
    return np.take(noise, np.arange(start, start + samples), mode="wrap").astype(np.float32)
