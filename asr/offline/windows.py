"""Windows: how a step's clips meet the 30 s that Whisper's encoder reads.

`packed` lays clips end to end, as distil-whisper's training does (Gandhi et al., 2023): the encoder sees windows as
full as those it was pre-trained on, and computes little silence. `trimmed` gives each clip a window of its own and
cuts the encoder to the longest of them, as icefall's Whisper recipes do. `padded` is the plain recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import WhisperTokenizer
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from asr.shared.clips import samples_of, spectrum_of
from asr.shared.features import HOP_LENGTH, SILENCE, LogMel
from asr.shared.processor import label_ids

IGNORE = -100
GAP_FRAMES = 20


def frames_of(samples: int) -> int:
    """Return how many frames of 10 ms hold `samples` at 16 kHz."""
    return -(-samples // HOP_LENGTH)


def pack(frames: list[int], tokens: list[int], max_frames: int, max_tokens: int) -> list[list[int]]:
    """Group clips into as few windows as best-fit-decreasing finds.

    Args:
        frames: length of each clip.
        tokens: label length of each clip, prompt and end included.
        max_frames: what a window holds, the gaps between clips included.
        max_tokens: what the decoder writes at most.

    Returns:
        Indices of the clips in each window; clips of a window stand in their given order.
    """
    windows: list[tuple[list[int], int, int]] = []
    for index in sorted(range(len(frames)), key=lambda i: -frames[i]):
        fitting = [
            (max_frames - used - GAP_FRAMES - frames[index], number)
            for number, (_, used, written) in enumerate(windows)
            if used + GAP_FRAMES + frames[index] <= max_frames and written + tokens[index] <= max_tokens
        ]
        if fitting:
            clips, used, written = windows[min(fitting)[1]]
            windows[min(fitting)[1]] = ([*clips, index], used + GAP_FRAMES + frames[index], written + tokens[index])
        else:
            windows.append(([index], frames[index], tokens[index]))
    return [sorted(clips) for clips, _, _ in windows]


@dataclass
class WindowCollator:
    """Turns rows of the bundle into one training batch.

    Attributes:
        tokenizer: with language and task set.
        log_mel: feature extraction for the model's window.
        layout: packed, trimmed or padded.
        max_tokens: `config.max_target_positions` of the model.
    """

    tokenizer: WhisperTokenizer
    log_mel: LogMel
    layout: str
    max_tokens: int

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Return one batch of W windows.

        Returns:
            input_features (W, mel, frames); decoder_input_ids (W, tokens), which begin with the start token; labels
            (W, tokens), the same sequence one token later, so they begin with the language token; padding is -100.
        """
        lengths = [frames_of(samples_of(row)) for row in rows]
        windows = [[i] for i in range(len(rows))]
        if self.layout == "packed":
            windows = pack(lengths, [len(row["labels"]) for row in rows], self.log_mel.window_frames, self.max_tokens)
        longest = max(map(samples_of, rows))
        frames = self.log_mel.frames_for(longest) if self.layout == "trimmed" else self.log_mel.window_frames
        spectra = [spectrum_of(row, self.log_mel) for row in rows]
        laid = torch.stack([self.log_mel.window(_lay_end_to_end(spectra, lengths, w), frames) for w in windows])
        return {"input_features": laid, **self._labels([self._ids(rows, window) for window in windows])}

    def _ids(self, rows: list[dict], window: list[int]) -> list[int]:
        if len(window) == 1:
            return rows[window[0]]["labels"]
        return label_ids(self.tokenizer, " ".join(rows[i]["text"] for i in window))

    def _labels(self, sequences: list[list[int]]) -> dict[str, torch.Tensor]:
        longest = max(map(len, sequences)) - 1
        inputs = torch.full((len(sequences), longest), self.tokenizer.eos_token_id)
        labels = torch.full((len(sequences), longest), IGNORE)
        for row, sequence in enumerate(sequences):
            inputs[row, : len(sequence) - 1] = torch.tensor(sequence[:-1])
            labels[row, : len(sequence) - 1] = torch.tensor(sequence[1:])
        return {"decoder_input_ids": inputs, "labels": labels}


@contextmanager
def encoder_window(model: torch.nn.Module, frames: int) -> Iterator[None]:
    """Let the encoder read `frames` (two a position) inside the block: its positions are sinusoids, any prefix works.

    Args:
        model: Whisper, plain or with an adapter.
        frames: even, at most the model's own window.
    """
    encoder = next(module for module in model.modules() if isinstance(module, WhisperEncoder))
    whole, positions = encoder.embed_positions, encoder.config.max_source_positions
    if frames == 2 * positions:
        yield
        return
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(whole.weight[: frames // 2])
    encoder.config.max_source_positions = frames // 2
    try:
        yield
    finally:
        encoder.embed_positions, encoder.config.max_source_positions = whole, positions


def _lay_end_to_end(spectra: list[torch.Tensor], lengths: list[int], window: list[int]) -> torch.Tensor:
    """Return the spectra of a window's clips with a short gap of silence between, in which each fades."""
    spans = [lengths[i] + GAP_FRAMES for i in window]
    end = sum(spans[:-1]) + spectra[window[-1]].shape[-1]
    laid = torch.full((spectra[window[0]].shape[0], end), SILENCE)
    at = 0
    for i, span in zip(window, spans, strict=True):
        laid[:, at : at + spectra[i].shape[-1]] = spectra[i]
        at += span
    return laid
