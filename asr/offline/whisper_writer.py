"""The writer of transformers: Whisper with its tokenizer, plain or with an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from asr.offline.decoding import Spoken
from asr.offline.encoder_window import encoder_window
from asr.offline.greedy import GreedyDecoder
from asr.offline.precision import Precision
from asr.offline.word_times import token_times, words_of
from asr.shared.text import clean_text

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration, WhisperTokenizer


class WhisperWriter:
    """transformers' Whisper, plain or with an adapter, decoding greedily.

    Args:
        model: on its device.
        tokenizer: of the same model, with language and task set.
        precision: as the model was loaded.
        most_tokens: of one text, the prompt's included.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration | PeftModel,
        tokenizer: WhisperTokenizer,
        precision: Precision,
        most_tokens: int,
    ) -> None:
        self.model, self.tokenizer, self.precision = model, tokenizer, precision
        config = model.config
        self.mel_bins, self.window_frames = config.num_mel_bins, 2 * config.max_source_positions
        self.prompt = prompt_of(model, self.tokenizer)
        most = min(most_tokens, config.max_target_positions)
        self.decoder = GreedyDecoder(model, self.prompt, most - len(self.prompt))

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Evaluation mode, no gradients and the right arithmetic inside the block; the old mode after it."""
        was_training, precision = self.model.training, self.precision
        self.model.eval()
        try:
            # Not inference_mode: bitsandbytes casts biases in place, and they would be barred from training for ever.
            with torch.no_grad(), torch.autocast(precision.device, precision.compute_dtype, enabled=precision.autocast):
                yield
        finally:
            self.model.train(was_training)

    def __call__(self, features: torch.Tensor, seconds: list[float] | None = None) -> list[Spoken]:
        """Return what is said in each window; see `Writer`."""
        whisper = self.decoder.whisper
        features = features.to(self.precision.device, self.precision.compute_dtype)
        with encoder_window(self.model, features.shape[-1]):
            audio = whisper.model.encoder(features).last_hidden_state
        ids = self.decoder.write(audio)
        texts = map(clean_text, self.tokenizer.batch_decode(ids, skip_special_tokens=True))
        if seconds is None:
            return list(map(Spoken, texts))
        times = token_times(whisper, audio, self.prompt, ids, seconds)
        words = (words_of(self.tokenizer, *row) for row in zip(ids, times, strict=True))
        return [Spoken(*row) for row in zip(texts, words, strict=True)]


def prompt_of(model: WhisperForConditionalGeneration | PeftModel, tokenizer: WhisperTokenizer) -> list[int]:
    """Return the tokens that every text of a model begins with; a model for English alone is told no language."""
    if model.generation_config.is_multilingual:
        return list(tokenizer.prefix_tokens)
    return [model.config.decoder_start_token_id, tokenizer.convert_tokens_to_ids("<|notimestamps|>")]
