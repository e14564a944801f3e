"""The estimate: what settings and data make of a training, known before anything is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from datasets import load_from_disk
from transformers import WhisperConfig, WhisperForConditionalGeneration

from asr.offline.footprint import Load, Shape
from asr.offline.hardware import usable_memory
from asr.offline.precision import Precision
from asr.offline.sampling import Window, WindowSampler
from asr.offline.whisper import attach_lora, count_parameters
from asr.shared.bundle import Bundle
from asr.shared.meter import in_bytes
from config import Lora, TrainOffline

EPOCHS_LOOKED_AT = 3
# In a checkpoint the states of the trainer, its schedule and its random numbers.
STATES_BYTES = 64 * 1024
# Of the memory; the estimate is good to about a third, so what is taken for almost full is taken for full.
ROOMY = 0.9


@dataclass(frozen=True)
class Plan:
    """What settings and data make of a training, before anything is computed.

    Attributes:
        sampler: of the training's windows, at its first epoch.
        largest: windows that make a micro-batch as large as any: as many, as long, and with labels as long.
        shape: of the model.
        trained: parameters that are trained.
        parameters: all of them, adapters included.
        steps: optimiser steps of the whole training.
        evaluations: how often the validation clips are decoded.
        most_windows: of an optimiser step.
        step_frames: frames that the encoder reads in an optimiser step, on average.
        tokenizer_bytes: of the small files that each checkpoint gets from the model's folder.
    """

    sampler: WindowSampler
    largest: list[Window]
    shape: Shape
    trained: int
    parameters: int
    steps: int
    evaluations: int
    most_windows: int
    step_frames: float
    tokenizer_bytes: int

    @property
    def layout(self) -> str:
        """Audio layout in use."""
        return self.sampler.layout

    @property
    def windows(self) -> float:
        """Windows of an optimiser step, on average."""
        return self.sampler.windows_per_step

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.sampler.steps_per_epoch

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
            "silent_share": self.sampler.silent_share,
            "evaluations": self.evaluations,
            "checkpoint_bytes": self.checkpoint_bytes,
        }

    def load(self, config: TrainOffline, precision: Precision, checkpointing: bool) -> Load:
        """Return what the largest step of this training asks of the memory."""
        windows, frames, tokens = self.sampler.shape_of(self.largest)
        return Load(
            self.shape,
            self.trained,
            config.lora.method,
            precision.quantization,
            precision.compute_dtype.itemsize,
            windows,
            frames,
            tokens,
            checkpointing,
        )


def plan(config: TrainOffline, bundle: Bundle, layout: str) -> Plan:
    """Work out what can be known without the model's weights.

    Raises:
        WhisperError: there are no training clips.
        UserError: `target_modules` names no layer, or a label is longer than the model writes.
    """
    splits = load_from_disk(str(bundle.data_dir))
    model = WhisperConfig.from_pretrained(bundle.model_dir, local_files_only=True)
    sampler = WindowSampler.of(splits["train"], config, model, layout)
    largest = largest_batch(sampler)
    shapes = [sampler.shape_of(batch) for batch in sampler.epoch.batches]
    training, per_epoch = config.training, sampler.steps_per_epoch
    steps = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * per_epoch)
    trained, parameters = parameters_of(model, config.lora)
    return Plan(
        sampler=sampler,
        largest=largest,
        shape=shape_of(model),
        trained=trained,
        parameters=parameters,
        steps=steps,
        evaluations=math.ceil(steps / (training.eval_steps or per_epoch)) if len(splits["validation"]) else 0,
        most_windows=len(largest) * sampler.accumulation,
        step_frames=sum(windows * frames for windows, frames, _ in shapes) / per_epoch,
        tokenizer_bytes=sum(
            file.stat().st_size for file in bundle.model_dir.iterdir() if file.suffix != ".safetensors"
        ),
    )


def largest_batch(sampler: WindowSampler) -> list[Window]:
    """Return windows as many as any micro-batch of the first epochs has, the longest and the wordiest among them."""
    most, windows = 0, []
    for epoch in reversed(range(EPOCHS_LOOKED_AT)):
        sampler.set_epoch(epoch)
        most = max(most, *map(len, sampler.epoch.batches))
    windows = [window for batch in sampler.epoch.batches for window in batch]
    by_frames = sorted(windows, key=lambda window: -sampler.shape_of([window])[1])
    wordiest = max(windows, key=lambda window: sampler.shape_of([window])[2])
    return [wordiest, *(window for window in by_frames if window is not wordiest)][:most]


def checkpointing_needed(config: TrainOffline, bundle: Bundle, precision: Precision, layout: str) -> tuple[bool, str]:
    """Return whether gradient checkpointing is used, and why.

    Args:
        config: of the training.
        bundle: opened.
        precision: of the device.
        layout: audio layout in use.
    """
    told = config.training.gradient_checkpointing
    if told != "auto":
        return told == "on", f"--gradient-checkpointing {told}"
    limit = usable_memory(precision.device)
    base = 0 if precision.device == "cuda" else psutil.Process().memory_info().rss
    peak = plan(config, bundle, layout).load(config, precision, checkpointing=False).peak(base)
    return peak > ROOMY * limit, f"auto: at most about {in_bytes(peak)} of {in_bytes(limit)}"


def parameters_of(model: WhisperConfig, lora: Lora) -> tuple[int, int]:
    """Return how many parameters are trained and how many there are, without loading any."""
    with torch.device("meta"):
        whisper = WhisperForConditionalGeneration(model)
        # However the adapters begin, they are as large.
        plain = replace(lora, init_lora_weights="true")
        return count_parameters(whisper if lora.method == "full" else attach_lora(whisper, plain))


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
