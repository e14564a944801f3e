"""A tiny Whisper trained from scratch: the real architecture, a tokenizer of one token a Hangul syllable.

The first stage reads single clips in short windows, where attention forms quickly with the help of an auxiliary CTC
loss on the encoder (dropped afterwards). Two more bring full windows of 30 s. The last four teach the model to find its
way in windows that hold several clips, which begins with two clips in 6 s and takes the longer windows from there; some
are labelled with timestamps, and short and padded windows come again to the end, so that none is unlearnt.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unicodedata import normalize

import numpy as np
import torch

from asr.offline.encoder_window import encoder_window
from asr.offline.windows import IGNORE
from asr.shared.audio import SAMPLE_RATE
from asr.shared.features import LogMel

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor, WhisperTokenizer

FULL_POSITIONS = 1500
SAMPLES_PER_POSITION = 320
FIRST_JAMO, SPACE, CTC_BLANK = 0x1100, 256, 257


@dataclass(frozen=True)
class Clip:
    """One spoken sentence: int16 samples at 16 kHz and what was said."""

    samples: np.ndarray
    text: str


@dataclass(frozen=True)
class Segment:
    """A clip's place in a window, in seconds."""

    begin: float
    end: float
    text: str


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        positions: window lengths in encoder positions (20 ms); each step draws one.
        positions_a_step: what a step computes in all: windows times their length.
        steps: optimiser steps.
        peak_learning_rate: after the warm-up; it falls to a hundredth along a cosine.
        ctc_weight: weight of the auxiliary loss.
        packed: share of windows that hold several clips, where they have room.
        warmup: steps over which the learning rate rises.
        timestamps: share of windows that are labelled with times.
    """

    positions: tuple[int, ...]
    positions_a_step: int
    steps: int
    peak_learning_rate: float
    ctc_weight: float
    packed: float = 0.0
    warmup: int = 300
    timestamps: float = 0.4


STAGES = [
    Stage((200,), 3200, 1800, 2e-3, 1.0, timestamps=0.0),
    Stage((FULL_POSITIONS,), 6000, 600, 7e-4, 0.5, packed=0.7),
    Stage((125, 150, 175, 200, 250, FULL_POSITIONS), 3200, 600, 7e-4, 0.0, packed=0.2, warmup=100),
    Stage((300, 400, 500, 750), 4500, 800, 1e-3, 0.3, packed=0.9, warmup=100),
    Stage((200, 500, 1000, FULL_POSITIONS), 6000, 600, 8e-4, 0.2, packed=0.8, warmup=100),
    Stage((500, 750, 1000, *[FULL_POSITIONS] * 3), 6000, 800, 1e-3, 0.2, packed=0.85, warmup=100),
    Stage((125, 175, 250, 1000, *[FULL_POSITIONS] * 4), 6000, 700, 8e-4, 0.1, packed=0.85, warmup=40),
]
TRIES = 3


def build_tokenizer(sentences: list[str]) -> WhisperTokenizer:
    """Byte-level BPE whose only merges build one Hangul syllable from its three bytes, then Whisper's own tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AddedToken, WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    alphabet = sorted(ByteLevel.alphabet())
    splitter = ByteLevel(add_prefix_space=False, use_regex=False)
    syllables = sorted({char for text in sentences for char in text if not char.isspace()})
    spelled = [splitter.pre_tokenize_str(syllable)[0][0] for syllable in syllables]
    pairs = sorted({(s[0], s[1]) for s in spelled}) + [(s[:2], s[2]) for s in spelled]
    tokens = alphabet + ["".join(pair) for pair in pairs]
    tokenizer = WhisperTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs)
    languages = [f"<|{code}|>" for code in LANGUAGES if code != "yue"]
    names = ["startoftranscript", *(code[2:-2] for code in languages), "translate", "transcribe", "startoflm"]
    names += ["startofprev", "nocaptions", "notimestamps"]
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<|{name}|>" for name in names]})
    tokenizer.add_tokens([AddedToken(f"<|{i * 0.02:.2f}|>", normalized=False) for i in range(1501)])
    return tokenizer


def build_model(tokenizer: WhisperTokenizer, seed: int) -> WhisperForConditionalGeneration:
    """A random-initialised Whisper of 4 + 2 layers, d_model 128, with a complete generation configuration."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(seed)
    token = tokenizer.convert_tokens_to_ids
    end = tokenizer.eos_token_id
    special = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": token("<|startoftranscript|>"),
    }
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=128,
        encoder_layers=4,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        max_source_positions=FULL_POSITIONS,
        # The default of 0.02 suits a d_model of 768; here it would drown the audio in the position embeddings.
        init_std=0.08,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **special,
    )
    model = WhisperForConditionalGeneration(config)
    languages = [t for t in tokenizer.all_special_tokens if len(t) in (6, 7) and t.startswith("<|")]
    model.generation_config = GenerationConfig(
        **special,
        alignment_heads=[[1, head] for head in range(4)],
        begin_suppress_tokens=[token("Ġ"), end],
        is_multilingual=True,
        lang_to_id={t: token(t) for t in languages},
        task_to_id={"transcribe": token("<|transcribe|>"), "translate": token("<|translate|>")},
        max_initial_timestamp_index=50,
        max_length=448,
        no_timestamps_token_id=token("<|notimestamps|>"),
        prev_sot_token_id=token("<|startofprev|>"),
        return_timestamps=False,
        suppress_tokens=[],
    )
    return model


def train(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    clips: list[Clip],
    stages: list[Stage],
    seed: int,
    device: str,
) -> None:
    """Train `model` in place through `stages`."""
    trainer = _Trainer(model, processor.tokenizer, clips, seed, device)
    for stage in stages:
        trainer.run(stage)
    model.eval()


class _Trainer:
    def __init__(self, model, tokenizer, clips: list[Clip], seed: int, device: str) -> None:
        self.model = model.to(device).train()
        self.labels = LabelMaker(tokenizer)
        self.clips = [(torch.from_numpy(clip.samples).to(device), clip.text) for clip in clips]
        self.rng = random.Random(seed)
        self.device = device
        torch.manual_seed(seed)
        self.ctc_head = torch.nn.Linear(model.config.d_model, CTC_BLANK + 1).to(device)

    def run(self, stage: Stage) -> None:
        log_mel = LogMel(self.model.config.num_mel_bins, 2 * FULL_POSITIONS, self.device)
        parameters = [p for p in self.model.parameters() if p.requires_grad] + list(self.ctc_head.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=stage.peak_learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, stage))
        began = time.monotonic()
        for step in range(1, stage.steps + 1):
            positions = self.rng.choice(stage.positions)
            waveforms, windows = self._windows(positions, stage)
            bfloat16 = torch.autocast(torch.device(self.device).type, torch.bfloat16)
            with encoder_window(self.model, 2 * positions), bfloat16:
                loss, ctc = self._loss(log_mel(waveforms, 2 * positions), windows, stage.timestamps)
            optimizer.zero_grad(set_to_none=True)
            (loss + stage.ctc_weight * ctc).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if step % 100 == 0 or step == stage.steps:
                seconds = time.monotonic() - began
                print(f"step {step}/{stage.steps} loss {loss:.4f} ctc {ctc:.4f} {seconds:.0f} s", flush=True)

    def _windows(self, positions: int, stage: Stage) -> tuple[torch.Tensor, list[list[Segment]]]:
        count = stage.positions_a_step // positions
        waveforms = torch.zeros(count, positions * SAMPLES_PER_POSITION, device=self.device)
        return waveforms, [self._fill(waveform, stage.packed) for waveform in waveforms]

    def _fill(self, waveform: torch.Tensor, packed: float) -> list[Segment]:
        """Lay clips end to end, noise over them: one, or as many as are drawn and have room."""
        most = self.rng.randint(2, 14) if self.rng.random() < packed else 1
        begin = int(self.rng.uniform(0, 0.4) * SAMPLE_RATE)
        segments: list[Segment] = []
        too_long = 0
        while len(segments) < most:
            samples, text = self.rng.choice(self.clips)
            end = begin + len(samples)
            if end > len(waveform):
                too_long += 1
                if segments and too_long > TRIES:
                    break
                continue
            waveform[begin:end] = samples * (self.rng.uniform(0.3, 1.0) / 32768)
            segments.append(Segment(begin / SAMPLE_RATE, end / SAMPLE_RATE, text))
            begin = end + int(self.rng.uniform(0.05, 0.6) * SAMPLE_RATE)
        heard = waveform[: int(segments[-1].end * SAMPLE_RATE)]
        heard += 10 ** self.rng.uniform(-4.0, -2.6) * torch.randn_like(heard)
        return segments

    def _loss(
        self, features: torch.Tensor, windows: list[list[Segment]], timestamps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = self.labels.batch(windows, self.rng, timestamps)
        encoded = self.model.model.encoder(features).last_hidden_state
        logits = self.model(encoder_outputs=(encoded,), decoder_input_ids=inputs.to(self.device)).logits
        cross_entropy = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.to(self.device).flatten(), label_smoothing=0.05
        )
        spoken = [jamo(" ".join(segment.text for segment in segments)) for segments in windows]
        log_probs = self.ctc_head(encoded).log_softmax(-1).transpose(0, 1)
        ctc = torch.nn.functional.ctc_loss(
            log_probs,
            torch.tensor([letter for letters in spoken for letter in letters]),
            torch.full((len(spoken),), log_probs.shape[0]),
            torch.tensor([len(letters) for letters in spoken]),
            blank=CTC_BLANK,
            zero_infinity=True,
        )
        return cross_entropy, ctc


class LabelMaker:
    """Decoder inputs and targets in Whisper's format, with or without timestamps."""

    def __init__(self, tokenizer) -> None:
        token = tokenizer.convert_tokens_to_ids
        self.tokenizer = tokenizer
        self.start = [token("<|startoftranscript|>"), token("<|ko|>"), token("<|transcribe|>")]
        self.no_timestamps = token("<|notimestamps|>")
        self.zero = token("<|0.00|>")
        self.end = tokenizer.eos_token_id

    def batch(
        self, windows: list[list[Segment]], rng: random.Random, timestamps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return decoder inputs and targets, both (windows, tokens); padding of the targets is ignored."""
        timestamped = [rng.random() < timestamps for _ in windows]
        rows = [self._row(segments, times) for segments, times in zip(windows, timestamped, strict=True)]
        longest = max(map(len, rows))
        inputs = torch.full((len(rows), longest - 1), self.end)
        targets = torch.full((len(rows), longest - 1), IGNORE)
        for i, row in enumerate(rows):
            inputs[i, : len(row) - 1] = torch.tensor(row[:-1])
            targets[i, : len(row) - 1] = torch.tensor(row[1:])
        return inputs, targets

    def _row(self, segments: list[Segment], timestamps: bool) -> list[int]:
        if not timestamps:
            joined = " ".join(segment.text for segment in segments)
            return [*self.start, self.no_timestamps, *self._ids(joined), self.end]
        row = list(self.start)
        for i, segment in enumerate(segments):
            text = self._ids(" " * (i > 0) + segment.text)
            row += [self.zero + round(segment.begin / 0.02), *text, self.zero + round(segment.end / 0.02)]
        return [*row, self.end]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids


def jamo(text: str) -> list[int]:
    """Return the letters of Hangul text as CTC classes: they are near to sounds, so the encoder finds them first."""
    return [ord(letter) - FIRST_JAMO if not letter.isspace() else SPACE for letter in normalize("NFD", text)]


def _warm_cosine(step: int, stage: Stage) -> float:
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
