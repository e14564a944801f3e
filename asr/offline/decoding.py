"""Decoding: waveforms in, text out; the one way in which training, evaluation and inference make text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr.offline.hardware import is_out_of_memory
from asr.offline.parts import free_memory
from asr.offline.precision import Precision
from asr.offline.windows import encoder_window
from asr.shared.audio import SAMPLE_RATE
from asr.shared.clips import spectrum_of
from asr.shared.features import LogMel
from asr.shared.progress import progress_bar
from asr.shared.text import clean_text
from config import Decoding
from utils import log

CUT_SEARCH_S = 5.0


class Stopped(Exception):
    """Decoding was asked to stop."""


def never() -> bool:
    """Do not stop."""
    return False


class Transcriber:
    """A model that listens.

    Args:
        model: Whisper, plain or with an adapter.
        processor: of the same model, with language and task set.
        precision: as the model was loaded.
        decoding: batch size and length limit.
        trimmed: cut the encoder's window to the longest of a batch; as the model was trained.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration | PeftModel,
        processor: WhisperProcessor,
        precision: Precision,
        decoding: Decoding,
        trimmed: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = processor.tokenizer
        self.precision = precision
        self.decoding = decoding
        self.trimmed = trimmed
        self.most_clips = decoding.per_device_eval_batch_size
        config = model.config
        self.log_mel = LogMel(config.num_mel_bins, 2 * config.max_source_positions)
        prompt = len(self.tokenizer.prefix_tokens)
        limit = min(decoding.generation_max_length, config.max_target_positions)
        self.options = {"max_new_tokens": limit - prompt}
        if model.generation_config.is_multilingual:
            self.options |= {"language": self.tokenizer.language, "task": self.tokenizer.task}

    def transcribe(self, waveforms: list[np.ndarray], progress: str = "") -> list[str]:
        """Return the text of each waveform (float32, 16 kHz, any length), in the given order.

        With `progress` for its title, a bar is shown.
        """
        pieces = [(i, piece) for i, waveform in enumerate(waveforms) for piece in self._cut(waveform)]

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

    def _decode_all(
        self,
        samples: list[int],
        spectrum: Callable[[int], torch.Tensor],
        progress: str,
        stop: Callable[[], bool] = never,
    ) -> list[str]:
        """Decode pieces of similar length together, so that a batch is done when its longest is."""
        order = sorted(range(len(samples)), key=lambda p: -samples[p])
        size = self.decoding.per_device_eval_batch_size
        texts = [""] * len(samples)
        bar = progress_bar(total=len(samples), desc=progress, unit="clip", disable=not progress, leave=False)
        with bar, _evaluating(self.model, self.precision):
            for start in range(0, len(order), size):
                if stop():
                    raise Stopped
                batch = order[start : start + size]
                frames = self.log_mel.frames_for(samples[batch[0]]) if self.trimmed else self.log_mel.window_frames
                for p, text in zip(batch, self._decode([spectrum(p) for p in batch], frames), strict=True):
                    texts[p] = text
                bar.update(len(batch))
        return texts

    def _decode(self, spectra: list[torch.Tensor], frames: int) -> list[str]:
        """Write down what is heard; where the memory does not hold all of it, one half after the other."""
        half = -(-len(spectra) // 2)
        if len(spectra) <= self.most_clips:
            try:
                return self._generate(spectra, frames)
            except (RuntimeError, MemoryError) as error:
                if len(spectra) == 1 or not is_out_of_memory(error):
                    raise
            free_memory()
            self.most_clips = half
            log.warning("out of memory: from now on no more than --per-device-eval-batch-size %d is decoded", half)
        return self._decode(spectra[:half], frames) + self._decode(spectra[half:], frames)

    def _generate(self, spectra: list[torch.Tensor], frames: int) -> list[str]:
        features = torch.stack([self.log_mel.window(spectrum, frames) for spectrum in spectra])
        features = features.to(self.precision.device, self.precision.compute_dtype)
        with encoder_window(self.model, frames):
            ids = self.model.generate(input_features=features, **self.options)
        return [clean_text(text) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _cut(self, waveform: np.ndarray) -> list[np.ndarray]:
        """Cut audio that is longer than the window, each time where it is quietest near the window's end."""
        limit = self.log_mel.window_samples
        pieces = []
        while len(waveform) > limit:
            at = quietest(waveform, max(limit // 2, limit - int(CUT_SEARCH_S * SAMPLE_RATE)), limit)
            pieces.append(waveform[:at])
            waveform = waveform[at:]
        return [*pieces, waveform]


@contextmanager
def _evaluating(model: torch.nn.Module, precision: Precision) -> Iterator[None]:
    """Evaluation mode, no gradients and the right arithmetic inside the block; the old mode after it."""
    was_training = model.training
    model.eval()
    try:
        # Not inference_mode: bitsandbytes casts biases in place, and they would be barred from training for ever.
        with torch.no_grad(), torch.autocast(precision.device, precision.compute_dtype, enabled=precision.autocast):
            yield
    finally:
        model.train(was_training)


def quietest(waveform: np.ndarray, start: int, end: int, frame: int = 1600) -> int:
    """Return the sample in [start, end) in the middle of the 0.1 s with the least energy."""
    spans = range(start, max(start + 1, end - frame), frame // 2)
    energy = [float(np.square(waveform[at : at + frame]).sum()) for at in spans]
    return spans[int(np.argmin(energy))] + frame // 2
