"""Word times: when each word of a text is said, read from the decoder's attention to the audio.

The heads that follow the speech (`alignment_heads` of the generation settings) tell for each token where it was
heard; dynamic time warping makes of that a path on which time never goes back. As in OpenAI's Whisper (timing.py):
Radford et al., 2022, and the 2023 addition of word-level timestamps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from asr.offline.greedy import DecoderPass

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

MEDIAN_WIDTH = 7
SECONDS_A_POSITION = 0.02
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Word:
    """A word and when it is said, in seconds from the beginning of its window, later of its recording."""

    text: str
    start: float
    end: float


def alignment_heads(whisper: WhisperForConditionalGeneration) -> list[tuple[int, int]]:
    """Return the heads that follow the speech: as the generation settings tell, or else those of the upper layers."""
    named = getattr(whisper.generation_config, "alignment_heads", None)
    if named:
        return [(int(layer), int(head)) for layer, head in named]
    layers, heads = whisper.config.decoder_layers, whisper.config.decoder_attention_heads
    return [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]


def token_times(
    whisper: WhisperForConditionalGeneration,
    audio: torch.Tensor,
    prompt: list[int],
    texts: list[list[int]],
    seconds: list[float],
) -> list[np.ndarray]:
    """Return when the tokens of each text begin, and when the last one ends.

    Args:
        whisper: without what an adapter wraps around it.
        audio: output of the encoder, shape (batch, positions, width).
        prompt: tokens before each text.
        texts: token ids, without prompt and end.
        seconds: of sound in each window; nothing is said behind it.

    Returns:
        seconds, float64, one array of tokens + 1 for each text, ascending.
    """
    heads = alignment_heads(whisper)
    end = whisper.generation_config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    longest = max(map(len, texts))
    rows = [[*prompt, *text, *[end] * (longest + 1 - len(text))] for text in texts]
    decoder = DecoderPass(whisper, audio, heads)
    decoder.hear(torch.tensor(rows, device=audio.device))
    scores = torch.stack([decoder.attention[head] for head in heads], dim=1).cpu()
    times = []
    for row, text, length in zip(scores, texts, seconds, strict=True):
        positions = max(1, min(row.shape[-1], round(length / SECONDS_A_POSITION)))
        # What stands before a token tells where it is heard: from the end of the prompt to the last of the text.
        first = len(prompt) - 1
        times.append(_path(_followed(row[:, :, :positions], first, first + len(text) + 1)) * SECONDS_A_POSITION)
    return times


def words_of(tokenizer: Any, text: list[int], times: np.ndarray) -> list[Word]:
    """Join the tokens of a text to words, which begin with a space.

    Args:
        tokenizer: whose ids they are.
        text: token ids.
        times: as `token_times` returns them.
    """
    words: list[Word] = []
    begun = 0
    for place in range(len(text)):
        piece = tokenizer.decode(text[begun : place + 1], skip_special_tokens=True)
        # A syllable may be spread over several tokens.
        if piece.endswith(REPLACEMENT) and place + 1 < len(text):
            continue
        start, end = float(times[begun]), float(times[place + 1])
        if words and not piece.startswith(" "):
            words[-1] = Word(words[-1].text + piece, words[-1].start, end)
        elif piece:
            words.append(Word(piece, start, end))
        begun = place + 1
    return [Word(word.text.strip(), word.start, word.end) for word in words if word.text.strip()]


def _followed(scores: torch.Tensor, first: int, last: int) -> np.ndarray:
    """Return how well each token fits each position, shape (tokens, positions), of all heads together."""
    weights = torch.softmax(scores, dim=-1)
    spread, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    weights = (weights - mean) / spread.clamp(min=1e-12)
    return _smoothed(weights).mean(dim=0)[first:last].numpy()


def _smoothed(weights: torch.Tensor) -> torch.Tensor:
    """Return the median of each value and its neighbours in time."""
    beside = MEDIAN_WIDTH // 2
    if weights.shape[-1] <= beside:
        return weights
    padded = torch.nn.functional.pad(weights, (beside, beside), mode="reflect")
    return padded.unfold(-1, MEDIAN_WIDTH, 1).median(dim=-1).values


def _path(fits: np.ndarray) -> np.ndarray:
    """Return the position at which each row of `fits` (tokens, positions) is reached on the best path through it."""
    cost = _costs(-fits.astype(np.float64))
    row, column = cost.shape[0] - 2, cost.shape[1] - 2
    reached = np.zeros(row + 1, dtype=np.int64)
    while row > 0 or column > 0:
        reached[row] = column
        # In this order as Whisper's own: a tie goes on in the diagonal.
        steps = (cost[row, column], cost[row, column + 1], cost[row + 1, column])
        step = int(np.argmin(steps))
        row, column = row - (step != 2), column - (step != 1)
    reached[0] = 0
    return reached


def _costs(cost: np.ndarray) -> np.ndarray:
    """Return the cost of the best path to each place, with a row and a column of infinity before; by diagonals."""
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    for diagonal in range(rows + columns - 1):
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        before = np.minimum(np.minimum(total[i, j], total[i, j + 1]), total[i + 1, j])
        total[i + 1, j + 1] = cost[i, j] + before
    return total
