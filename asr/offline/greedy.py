"""Greedy decoding: the likeliest token at each step, as Whisper's own decoder and `generate` with one beam write it.

The decoder's layers are called one by one, with no more around them than they need. Keys and values of the audio are
made once, those of the text are written into room that is there already, and an utterance that has come to its end
takes no further part: the last one of the batch moves to its place.

Reference: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration
    from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperDecoderLayer

# Tokens of the text that there is room for at first; doubled when it does not do.
FIRST_ROOM = 64


class GreedyDecoder:
    """Writes token ids for windows of audio.

    Language and task stand in the prompt. Of the model's generation settings only the tokens that it must not write
    (`suppress_tokens`, `begin_suppress_tokens`) and the token that ends a text are used.

    Args:
        model: Whisper, plain or with an adapter; which adapters are active is asked at every call.
        prompt: tokens that every text begins with, as `WhisperTokenizer.prefix_tokens` has them.
        max_new_tokens: most tokens behind the prompt, the end token included.
    """

    def __init__(
        self, model: WhisperForConditionalGeneration | PeftModel, prompt: list[int], max_new_tokens: int
    ) -> None:
        self.whisper = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.prompt, self.max_new_tokens = prompt, max_new_tokens
        settings = self.whisper.generation_config
        ends = settings.eos_token_id
        self.ends = set(ends) if isinstance(ends, list) else {ends}
        self.suppressed = list(settings.suppress_tokens or [])
        self.suppressed_first = list(settings.begin_suppress_tokens or [])

    def __call__(self, features: torch.Tensor) -> list[list[int]]:
        """Return the token ids of each window, without the prompt and without the end token.

        Args:
            features: log-mel windows, shape (batch, mel, frames), in the encoder's dtype and on its device; frames are
                twice the encoder's positions (`asr.offline.encoder_window`).
        """
        return self.write(self.whisper.model.encoder(features).last_hidden_state)

    def write(self, audio: torch.Tensor) -> list[list[int]]:
        """Return the token ids as `__call__` does, of the encoder's output (batch, positions, width)."""
        batch = DecoderPass(self.whisper, audio)
        suppressed, first = (
            torch.tensor(ids, dtype=torch.long, device=audio.device) for ids in (self.suppressed, self.suppressed_first)
        )
        texts: list[list[int]] = [[] for _ in audio]
        owners = list(range(len(audio)))
        tokens = torch.tensor([self.prompt] * len(audio), device=audio.device)
        for step in range(self.max_new_tokens):
            logits = batch.logits(tokens)
            logits[suppressed] = -torch.inf
            if step == 0:
                logits[first] = -torch.inf
            chosen = logits.argmax(dim=0).tolist()
            for row in reversed(range(len(owners))):
                if chosen[row] not in self.ends:
                    texts[owners[row]].append(chosen[row])
                    continue
                # From the last row on, so that what moves here goes on.
                batch.drop(row)
                owners[row], chosen[row] = owners[-1], chosen[-1]
                owners.pop(), chosen.pop()
            if not owners:
                break
            tokens = torch.tensor(chosen, device=audio.device)[:, None]
        return texts


@dataclass
class _Memory:
    """Keys and values of one layer, shape (batch, heads, tokens or positions, head size)."""

    keys: torch.Tensor
    values: torch.Tensor

    def move(self, source: int, target: int) -> None:
        for part in (self.keys, self.values):
            part[target] = part[source]


class DecoderPass:
    """The utterances of a batch that are not yet at their end, and what the decoder remembers of them.

    Args:
        whisper: without what an adapter wraps around it.
        audio: output of the encoder, shape (batch, positions, width).
        watched: layer and head of the attention to the audio that is to be kept.

    Attributes:
        attention: of each watched head the last tokens' scores, before softmax, shape (batch, tokens, positions).
    """

    def __init__(
        self,
        whisper: WhisperForConditionalGeneration,
        audio: torch.Tensor,
        watched: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.decoder, self.proj_out = whisper.model.decoder, whisper.proj_out
        self.watched = watched
        self.attention: dict[tuple[int, int], torch.Tensor] = {}
        self.alive, self.written = len(audio), 0
        self.heard = [_remember(layer.encoder_attn, audio) for layer in self.decoder.layers]
        self.told: list[_Memory] = []

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return float32 logits of what follows `tokens` (alive, new tokens), shape (vocabulary, alive)."""
        last = self.decoder.layer_norm(self.hear(tokens)[:, -1])
        # Of a vocabulary of 50,000 and a few utterances, a CPU multiplies this way round in half the time.
        plain = type(self.proj_out) is torch.nn.Linear
        return (self.proj_out.weight @ last.T if plain else self.proj_out(last).T).float()

    def hear(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the last layer's states of new tokens (alive, new tokens), shape (alive, new tokens, width)."""
        begin = self.written
        self.written += tokens.shape[1]
        hidden = self.decoder.embed_tokens(tokens) * self.decoder.embed_scale
        hidden = hidden + self.decoder.embed_positions.weight[begin : self.written]
        for number, layer in enumerate(self.decoder.layers):
            hidden = self._through(layer, number, begin, hidden)
        return hidden

    def drop(self, row: int) -> None:
        """Let go of an utterance; the last one takes its row."""
        self.alive -= 1
        if row < self.alive:
            for memory in (*self.heard, *self.told):
                memory.move(self.alive, row)

    def _through(self, layer: WhisperDecoderLayer, number: int, begin: int, hidden: torch.Tensor) -> torch.Tensor:
        normed = layer.self_attn_layer_norm(hidden)
        told = self._write(number, begin, layer.self_attn, normed)
        # Only the prompt has several tokens at once, and it begins the text.
        hidden = hidden + _attend(layer.self_attn, normed, told, causal=normed.shape[1] > 1)
        normed = layer.encoder_attn_layer_norm(hidden)
        heard = self.heard[number]
        heard = _Memory(heard.keys[: self.alive], heard.values[: self.alive])
        self._watch(number, layer.encoder_attn, normed, heard)
        hidden = hidden + _attend(layer.encoder_attn, normed, heard)
        normed = layer.final_layer_norm(hidden)
        return hidden + layer.fc2(layer.activation_fn(layer.fc1(normed)))

    def _watch(self, number: int, attention: WhisperAttention, hidden: torch.Tensor, heard: _Memory) -> None:
        heads = [head for layer, head in self.watched if layer == number]
        if not heads:
            return
        query = _heads(attention, attention.q_proj(hidden) * attention.scaling)
        for head in heads:
            weights = query[:, head].float() @ heard.keys[:, head].float().transpose(1, 2)
            self.attention[number, head] = weights

    def _write(self, number: int, begin: int, attention: WhisperAttention, hidden: torch.Tensor) -> _Memory:
        """Add the keys and values of new tokens to those of a layer, and return all of them."""
        new = _remember(attention, hidden)
        if number == len(self.told):
            self.told.append(_Memory(_with_room(new.keys), _with_room(new.values)))
        memory = self.told[number]
        if self.written > memory.keys.shape[2]:
            memory.keys, memory.values = _with_room(memory.keys), _with_room(memory.values)
        memory.keys[: self.alive, :, begin : self.written] = new.keys
        memory.values[: self.alive, :, begin : self.written] = new.values
        return _Memory(memory.keys[: self.alive, :, : self.written], memory.values[: self.alive, :, : self.written])


def _remember(attention: WhisperAttention, states: torch.Tensor) -> _Memory:
    """Return keys and values of states (batch, length, width)."""
    return _Memory(*(_heads(attention, project(states)) for project in (attention.k_proj, attention.v_proj)))


def _attend(attention: WhisperAttention, hidden: torch.Tensor, memory: _Memory, causal: bool = False) -> torch.Tensor:
    """Return what `hidden` (batch, length, width) draws from memory, in the same shape."""
    # Scaled before, as Whisper does it: in half precision the order matters.
    query = _heads(attention, attention.q_proj(hidden) * attention.scaling)
    drawn = torch.nn.functional.scaled_dot_product_attention(
        query, memory.keys.to(query.dtype), memory.values.to(query.dtype), is_causal=causal, scale=1.0
    )
    return attention.out_proj(drawn.transpose(1, 2).reshape(hidden.shape))


def _heads(attention: WhisperAttention, states: torch.Tensor) -> torch.Tensor:
    """Split (batch, length, width) into (batch, heads, length, head size)."""
    return states.view(*states.shape[:2], -1, attention.head_dim).transpose(1, 2).contiguous()


def _with_room(part: torch.Tensor) -> torch.Tensor:
    """Return a tensor with room for twice the tokens, which begins with those of `part`."""
    batch, heads, tokens, size = part.shape
    roomy = part.new_empty(batch, heads, max(FIRST_ROOM, 2 * tokens), size)
    roomy[:, :, :tokens] = part
    return roomy
