"""The estimate: what settings and data make of a training, known before anything is computed."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute
import torch
from datasets import Dataset, load_from_disk
from transformers import WhisperConfig, WhisperForConditionalGeneration

from asr.offline.footprint import Load, Shape
from asr.offline.precision import Precision
from asr.offline.whisper import attach_lora, count_parameters
from asr.offline.windows import frames_of, pack
from asr.shared.audio import SAMPLE_RATE
from asr.shared.bundle import Bundle
from asr.shared.features import LogMel
from config import Lora, TrainOffline
from utils import WhisperError

BATCHES_LOOKED_AT = 2000
# In a checkpoint the states of the trainer, its schedule and its random numbers.
STATES_BYTES = 64 * 1024


@dataclass(frozen=True)
class Clips:
    """The training clips as windows see them.

    Attributes:
        frames: length of each clip, in frames of 10 ms.
        tokens: label length of each clip.
        log_mel: for its window.
        max_tokens: what the decoder writes at most.
    """

    frames: list[int]
    tokens: list[int]
    log_mel: LogMel
    max_tokens: int

    @classmethod
    def of(cls, rows: Dataset, config: WhisperConfig) -> Clips:
        """Read the lengths of a split; its audio stays where it is."""
        frames = [frames_of(round(seconds * SAMPLE_RATE)) for seconds in rows["duration_s"]]
        tokens = pyarrow.compute.list_value_length(rows.data.column("labels")).to_pylist()
        return cls(
            frames, tokens, LogMel(config.num_mel_bins, 2 * config.max_source_positions), config.max_target_positions
        )

    def windows(self, batch: list[int], layout: str) -> tuple[int, int, int]:
        """Return the windows of a batch, the frames of each, and the tokens of the longest."""
        tokens = [self.tokens[i] for i in batch]
        if layout == "packed":
            window = self.log_mel.window_frames
            groups = pack([self.frames[i] for i in batch], tokens, window, self.max_tokens)
            return len(groups), window, max(sum(tokens[i] for i in group) for group in groups)
        longest = max(self.frames[i] for i in batch) * (SAMPLE_RATE // 100)
        frames = self.log_mel.frames_for(longest) if layout == "trimmed" else self.log_mel.window_frames
        return len(batch), frames, max(tokens)

    def worst_batch(self, size: int) -> list[int]:
        """Return the longest clips, the one with the longest label among them: no batch needs more memory."""
        longest = sorted(range(len(self.frames)), key=lambda i: -self.frames[i])
        wordiest = max(longest, key=lambda i: self.tokens[i])
        return [wordiest, *(i for i in longest if i != wordiest)][:size]

    def random_batches(self, size: int, seed: int) -> list[list[int]]:
        """Return full batches of clips in a random order."""
        order = np.random.default_rng(seed).permutation(len(self.frames)).tolist()
        starts = range(0, len(order) - size + 1, size)[:BATCHES_LOOKED_AT]
        return [order[start : start + size] for start in starts]


@dataclass(frozen=True)
class Plan:
    """What settings and data make of a training, before anything is computed.

    Attributes:
        layout: audio layout in use.
        trained: parameters that are trained.
        parameters: all of them, adapters included.
        batch: clips of a batch, where there are as many.
        steps_per_epoch: optimiser steps.
        steps: optimiser steps of the whole training.
        evaluations: how often the validation clips are decoded.
        windows: of an optimiser step, on average.
        most_windows: of an optimiser step.
        step_frames: frames that the encoder reads in an optimiser step, on average.
        tokenizer_bytes: of the small files that each checkpoint gets from the model's folder.
    """

    layout: str
    shape: Shape
    clips: Clips
    trained: int
    parameters: int
    batch: int
    steps_per_epoch: int
    steps: int
    evaluations: int
    windows: float
    most_windows: int
    step_frames: float
    tokenizer_bytes: int

    @property
    def weights_bytes(self) -> int:
        """Size of what was trained, on the disk."""
        return 4 * self.trained

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint: weights, Adam's two moments, small files."""
        return 3 * self.weights_bytes + self.tokenizer_bytes + STATES_BYTES

    def figures(self) -> dict[str, Any]:
        """Return what machines may want to know."""
        return {
            "trainable_parameters": self.trained,
            "parameters": self.parameters,
            "trainable_share": self.trained / self.parameters,
            "audio_layout": self.layout,
            "optimizer_steps": self.steps,
            "steps_per_epoch": self.steps_per_epoch,
            "windows_per_step": self.windows,
            "most_windows_per_step": self.most_windows,
            "evaluations": self.evaluations,
            "checkpoint_bytes": self.checkpoint_bytes,
        }

    def load(self, config: TrainOffline, precision: Precision) -> Load:
        """Return what the largest step of this training asks of the memory."""
        windows, frames, tokens = self.clips.windows(self.clips.worst_batch(self.batch), self.layout)
        return Load(
            self.shape,
            self.trained,
            config.lora.method,
            precision.quantization,
            precision.compute_dtype.itemsize,
            windows,
            frames,
            tokens,
            config.training.gradient_checkpointing,
        )


def plan(config: TrainOffline, bundle: Bundle, layout: str) -> Plan:
    """Work out what can be known without the model's weights.

    Raises:
        WhisperError: there are no training clips.
        UserError: `target_modules` names no layer.
    """
    splits = load_from_disk(str(bundle.data_dir))
    count = len(splits["train"])
    if not count:
        raise WhisperError(f"{bundle.path} has no training clips")
    model = WhisperConfig.from_pretrained(bundle.model_dir, local_files_only=True)
    clips = Clips.of(splits["train"], model)
    training = config.training
    batch, accumulated = min(training.per_device_train_batch_size, count), training.gradient_accumulation_steps
    # As Trainer counts.
    per_epoch = math.ceil(math.ceil(count / training.per_device_train_batch_size) / accumulated)
    steps = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * per_epoch)
    seen = [clips.windows(b, layout) for b in clips.random_batches(batch, config.run.seed)]
    most = clips.windows(clips.worst_batch(batch), layout)[0]
    trained, parameters = parameters_of(model, config.lora)
    return Plan(
        layout=layout,
        shape=shape_of(model),
        clips=clips,
        trained=trained,
        parameters=parameters,
        batch=batch,
        steps_per_epoch=per_epoch,
        steps=steps,
        evaluations=math.ceil(steps / (training.eval_steps or per_epoch)) if len(splits["validation"]) else 0,
        windows=accumulated * statistics.fmean(windows for windows, _, _ in seen),
        most_windows=accumulated * max(most, *(windows for windows, _, _ in seen)),
        step_frames=accumulated * statistics.fmean(windows * frames for windows, frames, _ in seen),
        tokenizer_bytes=sum(
            file.stat().st_size for file in bundle.model_dir.iterdir() if file.suffix != ".safetensors"
        ),
    )


def parameters_of(model: WhisperConfig, lora: Lora) -> tuple[int, int]:
    """Return how many parameters are trained and how many there are, without loading any."""
    with torch.device("meta"):
        whisper = WhisperForConditionalGeneration(model)
        return count_parameters(whisper if lora.method == "full" else attach_lora(whisper, lora))


def shape_of(model: WhisperConfig) -> Shape:
    """Return the dimensions that memory depends on."""
    return Shape(
        model.d_model,
        model.encoder_layers,
        model.decoder_layers,
        model.encoder_ffn_dim,
        model.num_mel_bins,
        model.vocab_size,
    )
