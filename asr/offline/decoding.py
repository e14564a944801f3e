"""Decoding: waveforms in, text out; the one way in which training, evaluation and inference make text."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from asr.offline.hardware import free_memory, is_out_of_memory
from asr.shared.audio import SAMPLE_RATE
from asr.shared.clips import spectrum_of
from asr.shared.features import LogMel
from asr.shared.progress import progress_bar
from config import Decoding
from utils import log

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    from asr.offline.precision import Precision
    from asr.offline.word_times import Word

CUT_SEARCH_S = 5.0
# Beyond this a larger batch gains nothing on a CPU, and its texts take room, too.
MOST_CUT_WINDOWS = 4


class Stopped(Exception):
    """Decoding was asked to stop."""


def never() -> bool:
    """Do not stop."""
    return False


@dataclass(frozen=True)
class Batch:
    """Pieces of audio that are decoded together.

    Attributes:
        places: which pieces.
        frames: of the encoder's window.
    """

    places: list[int]
    frames: int


@dataclass(frozen=True)
class Spoken:
    """What is said in a window.

    Attributes:
        text: clean.
        words: the same with times from the window's beginning, where they were asked for.
    """

    text: str
    words: list[Word] = field(default_factory=list)


class Writer(Protocol):
    """What makes text of windows: a model with its tokenizer, on its device.

    Attributes:
        mel_bins: that the encoder reads.
        window_frames: of a whole window.
    """

    mel_bins: int
    window_frames: int

    def ready(self) -> AbstractContextManager[None]:
        """Hold the model ready to write inside the block, and leave it after that as it was."""

    def __call__(self, features: torch.Tensor, seconds: list[float] | None = None) -> list[Spoken]:
        """Return what is said in each window.

        Args:
            features: log-mel windows, float32 on the CPU, shape (batch, mel, frames); frames are even.
            seconds: of sound in each window, where the times of words are wanted.
        """


class Transcriber:
    """A model that listens.

    Args:
        writer: the model.
        decoding: batch size.
        trimmed: cut the encoder's window to the longest of a batch; as the model was trained.
    """

    def __init__(self, writer: Writer, decoding: Decoding, trimmed: bool = False) -> None:
        self.writer, self.trimmed = writer, trimmed
        self.log_mel = LogMel(writer.mel_bins, writer.window_frames)
        self.size = decoding.per_device_eval_batch_size
        self.most_frames = self.size * self.log_mel.window_frames

    @classmethod
    def of(
        cls,
        model: WhisperForConditionalGeneration | PeftModel,
        processor: WhisperProcessor,
        precision: Precision,
        decoding: Decoding,
        trimmed: bool = False,
    ) -> Transcriber:
        """Return the transcriber of a model; arguments as for `WhisperWriter`."""
        from asr.offline.whisper_writer import WhisperWriter

        writer = WhisperWriter(model, processor.tokenizer, precision, decoding.generation_max_length)
        return cls(writer, decoding, trimmed)

    def transcribe(self, waveforms: list[np.ndarray], progress: str = "") -> list[str]:
        """Return the text of each waveform (float32, 16 kHz, any length), in the given order.

        With `progress` for its title, a bar is shown.
        """
        pieces = [(i, piece) for i, waveform in enumerate(waveforms) for piece in self.pieces(waveform)]

        def spectrum(p: int) -> torch.Tensor:
            return self.log_mel.spectrum(torch.from_numpy(pieces[p][1]))

        joined: list[list[str]] = [[] for _ in waveforms]
        texts = self._decode_all([len(piece) for _, piece in pieces], spectrum, progress)
        for (i, _), text in zip(pieces, texts, strict=True):
            joined[i].append(text)
        return [" ".join(filter(None, parts)) for parts in joined]

    def transcribe_clips(self, rows: Dataset, progress: str = "", stop: Callable[[], bool] = never) -> list[str]:
        """Return the text of each clip of the bundle, in the given order; each is opened when its turn comes.

        Raises:
            Stopped: `stop`, which is asked before each batch, said so.
        """
        samples = [round(seconds * SAMPLE_RATE) for seconds in rows["duration_s"]]
        return self._decode_all(samples, lambda i: spectrum_of(rows[i], self.log_mel), progress, stop)

    def pieces(self, waveform: np.ndarray) -> list[np.ndarray]:
        """Cut audio that is longer than the window, each time where it is quietest near the window's end."""
        limit = self.log_mel.window_samples
        pieces = []
        while len(waveform) > limit:
            at = quietest(waveform, max(limit // 2, limit - int(CUT_SEARCH_S * SAMPLE_RATE)), limit)
            pieces.append(waveform[:at])
            waveform = waveform[at:]
        return [*pieces, waveform]

    def plan(self, samples: list[int]) -> list[Batch]:
        """Return the batches in which pieces of so many samples are decoded, the longest pieces first.

        Pieces of similar length are together, so that a batch is done when its longest is. A batch of windows that are
        cut is larger: it may fill as many frames as `per_device_eval_batch_size` whole windows have.
        """
        order = sorted(range(len(samples)), key=lambda p: -samples[p])
        batches = []
        while order:
            frames = self.log_mel.frames_for(samples[order[0]]) if self.trimmed else self.log_mel.window_frames
            count = self.size * self._clips_a_window(frames)
            batches.append(Batch(order[:count], frames))
            order = order[count:]
        return batches

    def decode(
        self,
        batches: Iterable[Batch],
        spectrum: Callable[[int], torch.Tensor],
        samples: list[int] | None = None,
    ) -> Generator[list[Spoken]]:
        """Yield what is said in each batch; while one is decoded, the spectra of the next are made.

        Args:
            batches: as `plan` returns them.
            spectrum: gives the spectrum of a piece (`LogMel.spectrum`).
            samples: length of each piece, where the times of words are wanted.
        """

        def spoken(batch: Batch, spectra: Future) -> list[Spoken]:
            seconds = None if samples is None else [samples[place] / SAMPLE_RATE for place in batch.places]
            return self._decode(spectra.result(), batch.frames, seconds)

        def spectra(batch: Batch) -> list[torch.Tensor]:
            with torch.no_grad():
                return [spectrum(place) for place in batch.places]

        with ThreadPoolExecutor(1) as beside, self.writer.ready():
            ahead: deque[tuple[Batch, Future]] = deque()
            for batch in batches:
                ahead.append((batch, beside.submit(spectra, batch)))
                if len(ahead) > 1:
                    yield spoken(*ahead.popleft())
            while ahead:
                yield spoken(*ahead.popleft())

    def _decode_all(
        self,
        samples: list[int],
        spectrum: Callable[[int], torch.Tensor],
        progress: str,
        stop: Callable[[], bool] = never,
    ) -> list[str]:
        batches = self.plan(samples)
        texts = [""] * len(samples)
        bar = progress_bar(total=len(samples), desc=progress, unit="clip", disable=not progress, leave=False)
        with bar, closing(self.decode(batches, spectrum)) as decoded:
            for batch in batches:
                if stop():
                    raise Stopped
                for place, spoken in zip(batch.places, next(decoded), strict=True):
                    texts[place] = spoken.text
                bar.update(len(batch.places))
        return texts

    def _clips_a_window(self, frames: int) -> int:
        return min(MOST_CUT_WINDOWS, self.log_mel.window_frames // frames)

    def _decode(self, spectra: list[torch.Tensor], frames: int, seconds: list[float] | None) -> list[Spoken]:
        """Write down what is heard; where the memory does not hold all of it, one half after the other."""
        half = -(-len(spectra) // 2)
        if len(spectra) == 1 or len(spectra) * frames <= self.most_frames:
            try:
                return self.writer(torch.stack([self.log_mel.window(one, frames) for one in spectra]), seconds)
            except (RuntimeError, MemoryError) as error:
                if len(spectra) == 1 or not is_out_of_memory(error):
                    raise
            free_memory()
            self.most_frames = half * frames
            fits = max(1, half // self._clips_a_window(frames))
            log.warning(
                "out of memory: from now on %d clips at once (next time --per-device-eval-batch-size %d)", half, fits
            )
        parts = (spectra[:half], seconds and seconds[:half]), (spectra[half:], seconds and seconds[half:])
        return [spoken for spectra, seconds in parts for spoken in self._decode(spectra, frames, seconds)]


def quietest(waveform: np.ndarray, start: int, end: int, frame: int = 1600) -> int:
    """Return the sample in [start, end) in the middle of the 0.1 s with the least energy."""
    spans = range(start, max(start + 1, end - frame), frame // 2)
    energy = [float(np.square(waveform[at : at + frame]).sum()) for at in spans]
    return spans[int(np.argmin(energy))] + frame // 2
