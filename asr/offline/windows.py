"""Windows: how clips meet the 30 s that Whisper's encoder reads.

`packed` lays clips end to end, as distil-whisper's training does (Gandhi et al., 2023): the encoder sees windows as
full as those it was pre-trained on, and computes little silence. `trimmed` gives each clip a window of its own and
cuts the encoder to the longest of them, as icefall's Whisper recipes do. `padded` is the plain recipe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import WhisperTokenizer

from asr.offline.augmentation import Augmenter
from asr.offline.layouts import GAP_FRAMES, frames_of
from asr.offline.sampling import Heard, Window, fitted_frames
from asr.shared.audio import load_audio
from asr.shared.clips import samples_of, spectrum_of
from asr.shared.features import HOP_LENGTH, SILENCE, LogMel
from asr.shared.processor import label_ids
from utils import log

IGNORE = -100


@dataclass(frozen=True)
class Clip:
    """A clip in its window.

    Attributes:
        spectrum: float32, shape (mel, frames and 2 or 3 in which it fades).
        begin: first frame.
        end: frame behind its last.
    """

    spectrum: torch.Tensor
    begin: int
    end: int


class WindowCollator:
    """Turns windows into one micro-batch.

    Args:
        tokenizer: with language and task set.
        log_mel: feature extraction for the model's window.
        layout: packed, trimmed or padded.
        augmenter: changes the waveforms.
    """

    def __init__(self, tokenizer: WhisperTokenizer, log_mel: LogMel, layout: str, augmenter: Augmenter) -> None:
        self.tokenizer, self.log_mel, self.layout, self.augmenter = tokenizer, log_mel, layout, augmenter
        self.labels = Labels(tokenizer)

    def __call__(self, windows: list[Heard]) -> dict[str, torch.Tensor | list[list[str]]]:
        """Return one batch of W windows.

        Returns:
            input_features (W, mel, frames); decoder_input_ids (W, tokens), which begin with the start token; labels
            (W, tokens), the same sequence one token later, so they begin with the language token, padding -100;
            source_ids, of the clips in each window.
        """
        laid = [self._laid(window) for window in windows]
        samples = max(clips[-1].end for clips in laid) * HOP_LENGTH
        frames = self.log_mel.frames_for(samples) if self.layout == "trimmed" else self.log_mel.window_frames
        features = [self.log_mel.window(_joined(clips), frames) for clips in laid]
        return {
            "input_features": torch.stack(features),
            **self._padded([self._ids(window, clips) for window, clips in zip(windows, laid, strict=True)]),
            "source_ids": [[row["source_id"] for row in window.rows] for window in windows],
        }

    def _laid(self, heard: Heard) -> list[Clip]:
        """Return the clips of a window, laid end to end with a short gap between, in which each fades."""
        clips: list[Clip] = []
        for place, row in enumerate(heard.rows):
            spectrum, frames = self._spectrum(row, heard.window, place)
            begin = clips[-1].end + GAP_FRAMES if clips else 0
            clips.append(Clip(spectrum, begin, begin + frames))
        return clips

    def _spectrum(self, row: dict, window: Window, place: int) -> tuple[torch.Tensor, int]:
        """Return the spectrum of a clip, and how many frames of it are the clip."""
        frames = frames_of(samples_of(row))
        if not self.augmenter.changes_waveforms:
            return spectrum_of(row, self.log_mel), frames
        speed = window.speeds[place]
        random = np.random.default_rng([window.seed, place])
        waveform = self.augmenter(load_audio(row["audio"]["bytes"]), speed, random)
        kept = int(fitted_frames(np.array(frames), np.array(speed), self.log_mel.window_frames))
        waveform = waveform[: kept * HOP_LENGTH]
        return self.log_mel.spectrum(torch.from_numpy(waveform)), frames_of(len(waveform))

    def _ids(self, heard: Heard, clips: list[Clip]) -> list[int]:
        texts = [row["text"] for row in heard.rows]
        if heard.window.timestamps and self.labels.tells_times:
            ids = self.labels.timed(texts, [(clip.begin, clip.end) for clip in clips])
            # What was planned for; a space may cost a word more tokens than its own.
            if len(ids) <= max(sum(len(row["labels"]) for row in heard.rows), len(heard.rows[0]["labels"]) + 1):
                return ids
        return heard.rows[0]["labels"] if len(texts) == 1 else self.labels.plain(texts)

    def _padded(self, sequences: list[list[int]]) -> dict[str, torch.Tensor]:
        longest = max(map(len, sequences)) - 1
        inputs = torch.full((len(sequences), longest), self.tokenizer.eos_token_id)
        labels = torch.full((len(sequences), longest), IGNORE)
        for row, sequence in enumerate(sequences):
            inputs[row, : len(sequence) - 1] = torch.tensor(sequence[:-1])
            labels[row, : len(sequence) - 1] = torch.tensor(sequence[1:])
        return {"decoder_input_ids": inputs, "labels": labels}


class Labels:
    """Writes a window's texts as the tokens that Whisper is to write.

    Args:
        tokenizer: with language and task set.
    """

    def __init__(self, tokenizer: WhisperTokenizer) -> None:
        self.tokenizer = tokenizer
        self.zero = tokenizer.convert_tokens_to_ids("<|0.00|>")
        without_times = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
        self.prompt = [token for token in tokenizer.prefix_tokens if token != without_times]
        self.tells_times = self.zero != tokenizer.unk_token_id
        if not self.tells_times:
            log.info("labels: none with timestamps (the tokenizer has no tokens for them)")

    def plain(self, texts: list[str]) -> list[int]:
        """Return the tokens of texts that read as one."""
        return label_ids(self.tokenizer, " ".join(texts))

    def timed(self, texts: list[str], spans: list[tuple[int, int]]) -> list[int]:
        """Return the tokens of texts, each between its times (Radford et al., 2022, section 2.3).

        Args:
            texts: of the clips.
            spans: first frame and end of each; a time token is 2 frames, so the clip lies within what is told.
        """
        ids = list(self.prompt)
        for place, (text, (begin, end)) in enumerate(zip(texts, spans, strict=True)):
            words = label_ids(self.tokenizer, " " * (place > 0) + text)[len(self.tokenizer.prefix_tokens) : -1]
            ids += [self.zero + begin // 2, *words, self.zero - -end // 2]
        return [*ids, self.tokenizer.eos_token_id]


def _joined(clips: list[Clip]) -> torch.Tensor:
    """Return the spectra of a window's clips as one, silence between them."""
    last = clips[-1]
    joined = torch.full((last.spectrum.shape[0], last.begin + last.spectrum.shape[-1]), SILENCE)
    for clip in clips:
        joined[:, clip.begin : clip.begin + clip.spectrum.shape[-1]] = clip.spectrum
    return joined
