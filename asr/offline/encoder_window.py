"""The encoder's window: Whisper's encoder reads 30 s, and any beginning of that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def encoder_window(model: torch.nn.Module, frames: int) -> Iterator[None]:
    """Let the encoder read `frames` (two a position) inside the block: its positions are sinusoids, any prefix works.

    Args:
        model: Whisper, plain or with an adapter.
        frames: even, at most the model's own window.
    """
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

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
