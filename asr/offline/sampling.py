"""Sampling: which clips each rank trains on and when, drawn from seed and epoch alone.

The main process plans an epoch; the loader's workers get keys and draw nothing, so neither their number nor a resume
changes what is trained.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow.compute
from datasets import Dataset
from torch.utils.data import BatchSampler
from torch.utils.data import Dataset as TorchDataset
from transformers import WhisperConfig

from asr.offline.augmentation import Augmenter
from asr.offline.layouts import BUFFER_CLIPS, Lengths, Windows, deal, pack, steps_of
from asr.shared.audio import SAMPLE_RATE
from asr.shared.features import FRAMES_PER_SECOND, HOP_LENGTH, frames_for
from config import TrainOffline
from utils import UserError, WhisperError


@dataclass(frozen=True, slots=True)
class Window:
    """What a loader's worker turns into one encoder window.

    Attributes:
        clips: rows of the split, in the order in which they are laid.
        speeds: of each clip; 1.1 is a tenth faster.
        timestamps: whether the labels carry times.
        seed: of the waveform augmentation in this epoch.
    """

    clips: tuple[int, ...]
    speeds: tuple[float, ...]
    timestamps: bool
    seed: int


@dataclass(frozen=True)
class Heard:
    """A window's key and the rows that it names: what the collator gets."""

    window: Window
    rows: list[dict]


class WindowDataset(TorchDataset):
    """The training clips, asked for by windows."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.rows)

    def __getitem__(self, window: Window) -> Heard:
        """Return the rows of a window, each as the split holds it."""
        return Heard(window, [self.rows[i] for i in window.clips])


def lengths_of(rows: Dataset, model: WhisperConfig) -> Lengths:
    """Read the lengths of a split; its audio stays where it is.

    Raises:
        UserError: a label is longer than the model writes.
    """
    table = rows.select_columns(["duration_s", "labels", "source_id"]).with_format("arrow")[:]
    seconds = table["duration_s"].to_numpy().astype(np.float64)
    tokens = pyarrow.compute.list_value_length(table["labels"]).to_numpy().astype(np.int64)
    limit = model.max_target_positions
    if len(tokens) and tokens.max() > limit:
        worst = int(tokens.argmax())
        raise UserError(
            f"{table['source_id'][worst]}: its label has {tokens[worst]} tokens, and the model writes {limit} at most; "
            "shorten the text or leave the clip out, and make the bundle's data again"
        )
    samples = np.round(seconds * SAMPLE_RATE).astype(np.int64)
    return Lengths(-(-samples // HOP_LENGTH), tokens, 2 * model.max_source_positions, limit)


def fitted_frames(frames: np.ndarray, speeds: np.ndarray, window_frames: int) -> np.ndarray:
    """Return how many frames are kept for clips that are played at a speed; never more than the window."""
    return np.minimum(np.ceil(frames / speeds).astype(np.int64), window_frames)


@dataclass(frozen=True)
class Epoch:
    """What is trained in one epoch, on all ranks.

    Attributes:
        batches: micro-batches in their order; of `world` that follow each other, each rank takes one.
        frames: of each clip, at its speed.
    """

    batches: list[list[Window]]
    frames: np.ndarray


class WindowSampler(BatchSampler):
    """Yields micro-batches of windows; plans each epoch anew.

    An optimiser step has batch x accumulation x world clips in every layout, an epoch ceil(clips / that) steps. The
    windows of a step do not hang on how it is cut into micro-batches and ranks; only their least number does, since
    no micro-batch may be empty.

    Args:
        lengths: of the clips.
        config: of the training.
        layout: packed, trimmed or padded.
        rank: of this process.
        world: number of processes.

    Attributes:
        utterances: clips of an epoch.
        accumulation: micro-batches of an optimiser step on each rank. Packed clips need fewer than the settings say:
            as few as have no more windows than `per_device_train_batch_size`, which is what fills the memory.
        steps_per_epoch: optimiser steps.
    """

    def __init__(self, lengths: Lengths, config: TrainOffline, layout: str, rank: int = 0, world: int = 1) -> None:
        training = config.training
        self.lengths, self.layout, self.rank, self.world = lengths, layout, rank, world
        self.timestamp_probability, self.seed = training.timestamp_probability, config.run.seed
        # For the speeds alone; noise would be looked for on the disk.
        self.augmenter = Augmenter(replace(config.augmentation, noise_snr_db=None))
        self.utterances = len(lengths.frames)
        self.step_size = training.per_device_train_batch_size * training.gradient_accumulation_steps * world
        self.steps_per_epoch = math.ceil(self.utterances / self.step_size)
        share = windows_a_clip(lengths, self.seed) if layout == "packed" else 1.0
        self.accumulation = math.ceil(share * training.gradient_accumulation_steps)
        self.number = 0
        self.chosen: list[list[Window]] | None = None

    @classmethod
    def of(
        cls, rows: Dataset, config: TrainOffline, model: WhisperConfig, layout: str, rank: int = 0, world: int = 1
    ) -> WindowSampler:
        """Make the sampler of a split.

        Raises:
            WhisperError: there are no clips.
            UserError: a label is longer than the model writes.
        """
        if not len(rows):
            raise WhisperError("the bundle has no training clips")
        return cls(lengths_of(rows, model), config, layout, rank, world)

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch; the same in every epoch and on every rank."""
        if self.chosen is not None:
            return len(self.chosen)
        return (self.steps_per_epoch - 1) * self.accumulation + self._micro_batches(self._clips_of_last())

    def __iter__(self) -> Iterator[list[Window]]:  # type: ignore[override]  # torch's are lists of numbers
        """Yield the micro-batches of this rank in the current epoch."""
        return iter(self.epoch.batches[self.rank :: self.world] if self.chosen is None else self.chosen)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is next."""
        if epoch != self.number:
            self.number = epoch
            for planned in ("epoch", "silent_share"):
                self.__dict__.pop(planned, None)

    def choose(self, batches: list[list[Window]]) -> None:
        """Yield these micro-batches from now on, in every epoch."""
        self.chosen = batches

    @cached_property
    def epoch(self) -> Epoch:
        """The current epoch."""
        random = np.random.default_rng([self.seed, self.number])
        seconds = (self.lengths.frames / FRAMES_PER_SECOND).tolist()
        speeds = np.array(self.augmenter.speeds(seconds, self.lengths.window_frames / FRAMES_PER_SECOND, random))
        frames = fitted_frames(self.lengths.frames, speeds, self.lengths.window_frames)
        steps = steps_of(self.layout, replace(self.lengths, frames=frames), self.step_size, self._least, random)
        return Epoch(self._cut([self._keys(step, speeds, random) for step in steps]), frames)

    @property
    def windows_per_step(self) -> float:
        """Windows of an optimiser step in this epoch, on all ranks, on average."""
        return sum(map(len, self.epoch.batches)) / self.steps_per_epoch

    @cached_property
    def silent_share(self) -> float:
        """Share of the encoder's frames in this epoch, on all ranks, that hold no clip; gaps are silent, too."""
        frames = self.epoch.frames.tolist()
        heard = sum(frames[clip] for batch in self.epoch.batches for window in batch for clip in window.clips)
        return 1 - heard / sum(math.prod(self.shape_of(batch)[:2]) for batch in self.epoch.batches)

    def shape_of(self, batch: list[Window]) -> tuple[int, int, int]:
        """Return the windows of a micro-batch of this epoch, the encoder's frames of each, the tokens of the longest.

        Labels may be a few tokens shorter, never longer.
        """
        frames, tokens = self.lengths.window_frames, self.lengths.tokens
        if self.layout == "trimmed":
            longest = max(int(self.epoch.frames[window.clips[0]]) for window in batch)
            frames = frames_for(longest * HOP_LENGTH, frames)
        written = max(int(sum(tokens[clip] for clip in window.clips)) + window.timestamps for window in batch)
        return len(batch), frames, written

    def _clips_of_last(self) -> int:
        return self.utterances - (self.steps_per_epoch - 1) * self.step_size

    def _micro_batches(self, clips: int) -> int:
        """Return how many micro-batches each rank makes of a step of so many clips."""
        return math.ceil(self.accumulation * clips / self.step_size)

    def _least(self, clips: int) -> int:
        """Return how many windows a step of so many clips must have, so that no micro-batch is empty."""
        return min(clips, self.world * self._micro_batches(clips))

    def _keys(self, step: Windows, speeds: np.ndarray, random: np.random.Generator) -> list[Window]:
        """Draw what each window needs beside its clips."""
        timed = random.random(len(step)) < self.timestamp_probability
        seeds = random.integers(2**63, size=len(step))
        return [
            Window(clips, tuple(speeds[list(clips)].tolist()), self._may_tell_times(clips) and told, seed)
            for clips, told, seed in zip(step, timed.tolist(), seeds.tolist(), strict=True)
        ]

    def _may_tell_times(self, clips: tuple[int, ...]) -> bool:
        """Return whether times have room: they make a lone clip's label a token longer, several clips' shorter."""
        return len(clips) > 1 or bool(self.lengths.tokens[clips[0]] < self.lengths.max_tokens)

    def _cut(self, steps: list[list[Window]]) -> list[list[Window]]:
        """Cut each step into micro-batches for all ranks.

        Where the last step has too few windows, the epoch's first come again, as with torch's DistributedSampler.
        """
        full = self.world * self.accumulation
        parts = [*[full] * (len(steps) - 1), self.world * self._micro_batches(self._clips_of_last())]
        again = itertools.cycle(itertools.chain.from_iterable(steps))
        steps = [*steps[:-1], [*steps[-1], *itertools.islice(again, max(0, parts[-1] - len(steps[-1])))]]
        cut = _dealt if self.layout == "packed" else _sliced
        return [batch for step, number in zip(steps, parts, strict=True) for batch in cut(step, number)]


def windows_a_clip(lengths: Lengths, seed: int) -> float:
    """Return how many windows packed clips take each, from a sample of them, and 2 % for its chance."""
    random = np.random.default_rng(seed)
    sample = random.permutation(len(lengths.frames))[:BUFFER_CLIPS].tolist()
    return min(1.0, 1.02 * len(pack(lengths, sample)) / len(sample))


def _dealt(windows: list[Window], parts: int) -> list[list[Window]]:
    return deal(windows, parts, size=lambda window: len(window.clips))


def _sliced(windows: list[Window], parts: int) -> list[list[Window]]:
    """Cut windows into parts of nearly the same number, in their order."""
    ends = [len(windows) * part // parts for part in range(parts + 1)]
    return [windows[start:end] for start, end in itertools.pairwise(ends)]
