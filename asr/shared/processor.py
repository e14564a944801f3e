"""Whisper's processor: its tokenizer with the language and task tokens set, and its feature settings."""

from __future__ import annotations

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
    try:
        processor.tokenizer.set_prefix_tokens(language=language.lower(), task=task)
    except ValueError:
        raise UserError(f"--language {language}: Whisper knows no such language; name it in English") from None
    return processor


def label_ids(tokenizer: WhisperTokenizer, text: str) -> list[int]:
    """Return the tokens of a text between Whisper's prompt and end; a spelled-out <|endoftext|> stays text."""
    return tokenizer(text, split_special_tokens=True).input_ids
