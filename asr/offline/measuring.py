"""Measuring: a few steps of a training, run as the training itself would run them, and thrown away."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from transformers import DefaultFlowCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy

from asr.offline.estimate import Plan
from asr.offline.hardware import forget_peak, peak_memory
from asr.offline.parts import Whole
from asr.offline.precision import Precision
from asr.offline.runs import Run, start_run
from asr.offline.sampling import Window
from asr.offline.trainer import WhisperTrainer, build_trainer
from asr.shared.audio import SAMPLE_RATE
from asr.shared.bundle import Bundle
from asr.shared.progress import progress_bar
from config import TrainOffline

WORST_STEPS, TYPICAL_STEPS = 2, 6


@contextmanager
def passing_run(config: TrainOffline, bundle: Bundle) -> Iterator[Run]:
    """Give a run as `config` would start it, in a folder that is gone after the block."""
    with tempfile.TemporaryDirectory(prefix="whisper-check-", ignore_cleanup_errors=True) as folder:
        run = replace(config.run, output_dir=Path(folder), run_name="check")
        yield start_run(replace(config, run=run, training=replace(config.training, resume=False)), bundle)


@dataclass(frozen=True)
class Measured:
    """What real steps took.

    Attributes:
        peak_bytes: memory at its highest: reserved on a GPU, resident on a CPU.
        allocated_bytes: on a GPU, what of it held tensors.
        step_seconds: of an average optimiser step.
        loader_seconds: in which the loading processes prepare a step's clips; longer than the step, it is the pace.
        clip_seconds: in which a validation clip is decoded; 0 where there is none.
    """

    peak_bytes: int
    allocated_bytes: int | None
    step_seconds: float
    loader_seconds: float
    clip_seconds: float

    @property
    def pace(self) -> float:
        """Seconds from one optimiser step to the next."""
        return max(self.step_seconds, self.loader_seconds)


def layout_of(config: TrainOffline, bundle: Bundle) -> str:
    """Return the audio layout that a run would get."""
    with passing_run(config, bundle) as run:
        return run.record["audio_layout"]


def measure(
    config: TrainOffline, bundle: Bundle, precision: Precision, plan: Plan, seconds: float, decode: bool = True
) -> Measured:
    """Train a few steps as the training would, the largest first, and decode a few validation clips.

    Args:
        config: the training's.
        bundle: opened.
        precision: of the device.
        plan: of the same settings.
        seconds: after which no further step is begun; one ordinary step is always run.
        decode: measure the decoding, too.

    Raises:
        RuntimeError: among others where memory runs out; see `is_out_of_memory`.
    """
    forget_peak(precision.device)
    with passing_run(config, bundle) as run:
        trainer = build_trainer(_short(config), bundle, run, precision)
        # From the second batch on, gradients are kept beside the activations: no further one adds anything.
        few = trainer.args.gradient_accumulation_steps = min(2, plan.sampler.accumulation)
        trainer.parts = Whole(len(plan.largest), few)
        usual = list(islice(cycle(plan.sampler.epoch.batches), few * TYPICAL_STEPS))
        pace = _run_steps(trainer, [plan.largest] * (few * WORST_STEPS) + usual, seconds)
        clip_seconds = _decoding_pace(trainer) if decode and trainer.eval_dataset is not None else 0.0

    done = usual[: few * (len(pace.ends) - WORST_STEPS)]
    frames = sum(windows * length for windows, length, _ in map(plan.sampler.shape_of, done))
    took = pace.ends[-1] - pace.ends[WORST_STEPS - 1]
    to_load = _loading_pace(trainer, usual[-1], config.training.dataloader_num_workers)
    return Measured(
        peak_bytes=peak_memory(precision.device),
        allocated_bytes=torch.cuda.max_memory_allocated() if precision.device == "cuda" else None,
        step_seconds=took / frames * plan.step_frames,
        loader_seconds=plan.sampler.accumulation * to_load,
        clip_seconds=clip_seconds,
    )


def _short(config: TrainOffline) -> TrainOffline:
    """Return `config` for a single pass over chosen batches."""
    return replace(config, training=replace(config.training, num_train_epochs=1, max_steps=-1))


class _Pace(TrainerCallback):
    """Notes when each step ends, and stops when the time is over."""

    def __init__(self, steps: int, seconds: float) -> None:
        self.ends: list[float] = []
        self.seconds = seconds
        self.bar = progress_bar(total=steps, desc="a few steps", unit="step", leave=False)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.monotonic())
        self.bar.update()
        enough = len(self.ends) > WORST_STEPS and self.ends[-1] - self.ends[0] > self.seconds
        control.should_training_stop = control.should_training_stop or enough


def _run_steps(trainer: WhisperTrainer, batches: list[list[Window]], seconds: float) -> _Pace:
    """Let the trainer itself run the steps of these batches, with nothing saved, logged or evaluated."""
    steps = len(batches) // trainer.args.gradient_accumulation_steps
    pace = _Pace(steps, seconds)
    flow = [c for c in trainer.callback_handler.callbacks if isinstance(c, DefaultFlowCallback)]
    trainer.callback_handler.callbacks = [*flow, pace]
    trainer.args.save_strategy = SaveStrategy.NO
    trainer.args.logging_steps = 10 * steps
    trainer.sampler.choose(batches)
    try:
        trainer.train()
    finally:
        pace.bar.close()
    return pace


def _loading_pace(trainer: WhisperTrainer, batch: list[Window], workers: int) -> float:
    """Return the seconds in which the loading processes have a batch ready; 0 where the step itself loads."""
    if not workers:
        return 0.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        began = time.monotonic()
        trainer.data_collator([trainer.train_dataset[window] for window in batch])
        return (time.monotonic() - began) / workers
    finally:
        torch.set_num_threads(threads)


def _decoding_pace(trainer: WhisperTrainer) -> float:
    """Return the seconds for a validation clip, from one batch of clips of middling length."""
    rows = trainer.eval_dataset
    batches = trainer.transcriber.plan([round(seconds * SAMPLE_RATE) for seconds in rows["duration_s"]])
    chosen = rows.select(batches[len(batches) // 2].places)
    began = time.monotonic()
    trainer.transcriber.transcribe_clips(chosen)
    return (time.monotonic() - began) / len(chosen)
