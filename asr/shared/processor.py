"""Whisper's processor: its tokenizer with the language and task tokens set, and its feature settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from utils import UserError

if TYPE_CHECKING:
    from transformers import WhisperProcessor, WhisperTokenizer


def load_processor(model_dir: Path, language: str, task: str) -> WhisperProcessor:
    """Open the processor of a local Whisper folder.

    Raises:
        UserError: Whisper's tokenizer knows no such language.
    """
    from transformers import WhisperProcessor

    processor = WhisperProcessor.from_pretrained(model_dir)
    _set_prompt(processor.tokenizer, language, task)
    return processor


def load_tokenizer(model_dir: Path, language: str, task: str) -> WhisperTokenizer:
    """Open the tokenizer alone, in a fraction of the time: the rest of a processor brings torch along.

    Raises:
        UserError: Whisper's tokenizer knows no such language.
    """
    from transformers import WhisperTokenizer

    tokenizer = WhisperTokenizer.from_pretrained(model_dir)
    _set_prompt(tokenizer, language, task)
    return tokenizer


def _set_prompt(tokenizer: WhisperTokenizer, language: str, task: str) -> None:
    try:
        tokenizer.set_prefix_tokens(language=language.lower(), task=task)
    except ValueError:
        raise UserError(f"--language {language}: Whisper knows no such language; name it in English") from None


def mel_window(model_dir: Path) -> tuple[int, int]:
    """Return how many mel bins, and how many frames in a window, the encoder of a local Whisper folder reads."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    return config.get("num_mel_bins", 80), 2 * config.get("max_source_positions", 1500)


def label_ids(tokenizer: WhisperTokenizer, text: str) -> list[int]:
    """Return the tokens of a text between Whisper's prompt and end; a spelled-out <|endoftext|> stays text."""
    return tokenizer(text, split_special_tokens=True).input_ids


def label_ids_of_all(tokenizer: WhisperTokenizer, texts: list[str]) -> list[list[int]]:
    """Return `label_ids` of each text; many at once take a tenth of the time."""
    return tokenizer(texts, split_special_tokens=True).input_ids if texts else []
