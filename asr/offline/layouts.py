"""Layouts: which clips share an encoder window, and which windows make an optimiser step.

A layout is planned over clips in a random order. Nothing here knows of epochs, ranks or micro-batches.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from asr.shared.features import HOP_LENGTH

GAP_FRAMES = 20
BUFFER_CLIPS = 4096
# Lengths are blurred by so much before they are sorted: otherwise the same clips would meet in every epoch.
BLUR = {"trimmed": 0.03, "packed": 0.2}

Windows = list[tuple[int, ...]]
Part = TypeVar("Part")


def frames_of(samples: int) -> int:
    """Return how many frames of 10 ms hold `samples` at 16 kHz."""
    return -(-samples // HOP_LENGTH)


@dataclass(frozen=True)
class Lengths:
    """What clips take of a window.

    Attributes:
        frames: of each clip, in frames of 10 ms; shape (clips,).
        tokens: of each clip's label, prompt and end included; shape (clips,).
        window_frames: what a window holds, the gaps between clips included.
        max_tokens: what the decoder writes at most.
    """

    frames: np.ndarray
    tokens: np.ndarray
    window_frames: int
    max_tokens: int


def steps_of(
    layout: str, lengths: Lengths, size: int, least: Callable[[int], int], random: np.random.Generator
) -> list[Windows]:
    """Plan an epoch: every clip once, ceil(clips / size) optimiser steps.

    Every step but the last has `size` clips, in `packed` on average over a buffer of steps.

    Args:
        layout: packed, trimmed or padded.
        lengths: of the clips.
        size: clips of a step.
        least: windows that a step of so many clips must have at least; never more than clips.
        random: draws the order.

    Returns:
        The windows of each step, as the clips that lie in them from left to right.
    """
    order = random.permutation(len(lengths.frames))
    steps: list[Windows] = []
    for number in _buffers(len(order), size):
        clips, order = order[: number * size], order[number * size :]
        if layout == "packed":
            steps += _packed(lengths, clips, number, least(min(size, len(clips))), random)
        elif layout == "trimmed":
            steps += _of_like_length(lengths, clips, number, random)
        else:
            steps += _as_they_come(clips, number)
    return steps


def _buffers(clips: int, size: int) -> Iterator[int]:
    """Yield how many steps are planned together, as evenly as it goes; a last step that is not full is alone."""
    whole = clips // size
    buffers = -(-whole * size // max(BUFFER_CLIPS, size))
    for number in range(buffers):
        yield (number + 1) * whole // buffers - number * whole // buffers
    if clips % size:
        yield 1


def _as_they_come(clips: np.ndarray, steps: int) -> list[Windows]:
    return [[(clip,) for clip in part.tolist()] for part in np.split(clips, steps)]


def _of_like_length(lengths: Lengths, clips: np.ndarray, steps: int, random: np.random.Generator) -> list[Windows]:
    sliced = np.split(_sorted(lengths, clips, BLUR["trimmed"], random), steps)
    return [[(clip,) for clip in sliced[i].tolist()] for i in random.permutation(steps)]


def _packed(lengths: Lengths, clips: np.ndarray, steps: int, least: int, random: np.random.Generator) -> list[Windows]:
    windows = pack(lengths, clips.tolist())
    if len(windows) < steps * least:
        windows = spread(lengths, _sorted(lengths, clips, BLUR["packed"], random).tolist(), steps * least)
    windows = [tuple(random.permutation(window).tolist()) for window in windows]
    dealt = deal(windows, steps, size=len)
    return [dealt[i] for i in random.permutation(steps)]


def _sorted(lengths: Lengths, clips: np.ndarray, blur: float, random: np.random.Generator) -> np.ndarray:
    """Return the clips from the longest to the shortest, by and large."""
    blurred = lengths.frames[clips] * random.uniform(1 - blur, 1 + blur, len(clips))
    return clips[np.argsort(-blurred, kind="stable")]


def pack(lengths: Lengths, clips: list[int]) -> Windows:
    """Lay clips into windows by best fit: each goes where least room is left behind it.

    The clips are taken in the order given. Beginning with the longest (best fit decreasing) would save about one window
    of a hundred with speech of usual lengths, but would make windows of two clips and of twenty, and the same ones in
    every epoch.
    """
    windows: list[list[int]] = []
    written: list[int] = []
    open_windows: list[tuple[int, int]] = []  # room left and number, in this order
    for clip, frames, tokens in _sizes(lengths, clips):
        at = bisect.bisect_left(open_windows, (frames + GAP_FRAMES, -1))
        while at < len(open_windows) and written[open_windows[at][1]] + tokens > lengths.max_tokens:
            at += 1
        if at < len(open_windows):
            room, number = open_windows.pop(at)
            windows[number].append(clip)
            written[number] += tokens
            left = room - GAP_FRAMES - frames
        else:
            number, left = len(windows), lengths.window_frames - frames
            windows.append([clip])
            written.append(tokens)
        bisect.insort(open_windows, (left, number))
    return [tuple(window) for window in windows]


def spread(lengths: Lengths, clips: list[int], number: int) -> Windows:
    """Lay clips into at least `number` windows that are filled evenly: each goes where most room is.

    The clips are taken in the order given; if long ones come first, short ones make up for their differences.
    """
    windows: list[list[int]] = [[] for _ in range(number)]
    # Room taken, tokens written and number; the emptiest first.
    taken = [(-GAP_FRAMES, 0, i) for i in range(number)]
    for clip, frames, tokens in _sizes(lengths, clips):
        used, written, i = taken[0]
        end, told = used + GAP_FRAMES + frames, written + tokens
        if end <= lengths.window_frames and told <= lengths.max_tokens:
            heapq.heapreplace(taken, (end, told, i))
            windows[i].append(clip)
        else:
            heapq.heappush(taken, (frames, tokens, len(windows)))
            windows.append([clip])
    return [tuple(window) for window in windows]


def deal(windows: list[Part], shares: int, size: Callable[[Part], int]) -> list[list[Part]]:
    """Deal windows out: each share gets the floor or the ceiling of their mean number, and clips as even as it goes.

    Args:
        windows: of any kind.
        shares: no more than windows, if each is to get one.
        size: number of clips in a window.
    """
    dealt: list[list[Part]] = [[] for _ in range(shares)]
    by_clips = sorted(windows, key=size, reverse=True)
    for start in range(0, len(by_clips), shares):
        dealt.sort(key=lambda share: sum(map(size, share)))
        for share, window in zip(dealt, by_clips[start : start + shares], strict=False):
            share.append(window)
    return dealt


def _sizes(lengths: Lengths, clips: list[int]) -> Iterator[tuple[int, int, int]]:
    return zip(clips, lengths.frames[clips].tolist(), lengths.tokens[clips].tolist(), strict=True)
