"""CTranslate2: Whisper as faster-whisper opens it, in the place of transformers' model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from asr.offline.decoding import Spoken
from asr.offline.word_times import SECONDS_A_POSITION, words_of
from asr.shared.features import FRAMES_PER_SECOND
from asr.shared.processor import load_tokenizer
from asr.shared.text import clean_text
from utils import UserError

if TYPE_CHECKING:
    from transformers import WhisperTokenizer

MODEL = "model.bin"
WINDOW_S = 30
# Tokens that Whisper's decoder has positions for.
LONGEST = 448
# Tokens of OpenAI's models for English alone, which are told neither language nor task.
ENGLISH_ONLY = 51864
# What --quantization is called there; "default" takes the weights as they are stored.
COMPUTE_TYPES = {"auto": "default", "8bit": "int8", "none": "float32"}


def is_ctranslate2(folder: Path) -> bool:
    """Tell whether a folder holds a model of CTranslate2."""
    return (folder / MODEL).is_file()


def formats_of(quantization: str) -> dict[str, str]:
    """Return device and formats as they are asked for, of which the texts hang on; nothing is opened."""
    return {"device": _device().upper(), "compute_type": COMPUTE_TYPES.get(quantization, quantization)}


def _device() -> str:
    try:
        import ctranslate2
    except ModuleNotFoundError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() and ctranslate2.get_cuda_device_count() else "cpu"


class CTranslate2Writer:
    """Whisper in CTranslate2, decoding greedily; a `Writer` of `asr.offline.decoding`.

    Args:
        folder: with model.bin and tokenizer.json.
        language, task: as for `load_tokenizer`.
        quantization: as --quantization says it.
        most_tokens: of one text, the prompt's included.

    Raises:
        UserError: the package is missing, the folder holds no such Whisper, or CTranslate2 has no such format.
    """

    def __init__(self, folder: Path, language: str, task: str, quantization: str, most_tokens: int) -> None:
        self.tokenizer = _tokenizer(folder, language, task)
        self.model = _open(folder, quantization)
        self.mel_bins, self.window_frames = self.model.n_mels, WINDOW_S * FRAMES_PER_SECOND
        self.prompt = list(self.tokenizer.prefix_tokens)
        if len(self.tokenizer) == ENGLISH_ONLY:
            self.prompt = [self.prompt[0], self.prompt[-1]]
        # It stops after the smaller of half of this, and this less the prompt.
        new = min(most_tokens, LONGEST) - len(self.prompt)
        self.max_length = max(2 * new, new + len(self.prompt))

    @contextmanager
    def ready(self) -> Iterator[None]:
        """It is always ready."""
        yield

    def __call__(self, features: torch.Tensor, seconds: list[float] | None = None) -> list[Spoken]:
        """Return what is said in each window; see `Writer`."""
        import ctranslate2

        heard = self.model.encode(ctranslate2.StorageView.from_array(features.contiguous().numpy()))
        prompts = [self.prompt] * len(features)
        found = self.model.generate(heard, prompts, beam_size=1, max_length=self.max_length)
        ids = [result.sequences_ids[0] for result in found]
        texts = list(map(clean_text, self.tokenizer.batch_decode(ids, skip_special_tokens=True)))
        if seconds is None:
            return list(map(Spoken, texts))
        # Without the last token of the prompt, which says that no times are to be written.
        frames = [round(length * FRAMES_PER_SECOND) for length in seconds]
        aligned = self.model.align(heard, self.prompt[:-1], ids, frames)
        times = [_times(each.alignments, len(text)) for each, text in zip(aligned, ids, strict=True)]
        words = (words_of(self.tokenizer, *row) for row in zip(ids, times, strict=True))
        return [Spoken(*row) for row in zip(texts, words, strict=True)]

    def describe(self) -> dict[str, str]:
        """Device and formats in words, for records."""
        return {"device": self.model.device.upper(), "compute_type": self.model.compute_type}


def _times(path: list[tuple[int, int]], tokens: int) -> np.ndarray:
    """Return when each token begins and the last one ends, from the (token, position) that a path leads through."""
    reached = np.full(tokens + 1, path[-1][1] if path else 0)
    for token, position in reversed(path):
        if token <= tokens:
            reached[token] = position
    return reached * SECONDS_A_POSITION


def _tokenizer(folder: Path, language: str, task: str) -> WhisperTokenizer:
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{folder} has no tokenizer.json: convert the model again with --copy_files tokenizer.json, "
            "or copy the one of the model that it was made of"
        )
    return load_tokenizer(folder, language, task)


def _open(folder: Path, quantization: str):
    try:
        import ctranslate2
    except ModuleNotFoundError:
        raise UserError(f"{folder} is a model of CTranslate2: pip install ctranslate2") from None
    if quantization not in COMPUTE_TYPES:
        raise UserError(f"{folder}: CTranslate2 has no {quantization} weights: use --quantization 8bit, none or auto")
    # It tells at length which formats it takes for which; describe() does in a word.
    ctranslate2.set_log_level(logging.ERROR)
    try:
        return ctranslate2.models.Whisper(
            str(folder),
            device=_device(),
            compute_type=COMPUTE_TYPES[quantization],
            intra_threads=torch.get_num_threads(),
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{folder} cannot be opened: {str(error).splitlines()[0]}") from None
