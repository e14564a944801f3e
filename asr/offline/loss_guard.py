"""The loss guard: stops a training that has gone wrong before the night is over."""

from __future__ import annotations

import math
from collections import deque

import torch

from utils import WhisperError

# An odd batch costs a step, a wrong learning rate all that follow.
STEPS_IN_A_ROW = 20
BEST_STEPS = 5


class BadLoss(WhisperError):
    """The loss is no number, or explodes.

    Attributes:
        step: at which it began.
        clips: source_ids of the clips in that step.
        losses: of the last steps, the newest last.
    """

    def __init__(self, told: str, step: int, clips: list[str], losses: list[float]) -> None:
        super().__init__(told)
        self.step, self.clips, self.losses = step, clips, losses


class LossGuard:
    """Looks at the loss of every step.

    The loss explodes where 20 steps in a row cost a third of ln(vocabulary) more than the best five in a row did, which
    for Whisper are 3.6 nats a token: each token is then 37 times less likely. Before the first five steps the measure
    is ln(vocabulary), what guessing costs. Overflowed gradients that a GradScaler skips do not count: the loss of
    their step is a number.

    Args:
        vocab_size: of the model.
    """

    def __init__(self, vocab_size: int) -> None:
        self.guessing = math.log(vocab_size)
        self.best = self.guessing
        self.losses: deque[float] = deque(maxlen=STEPS_IN_A_ROW)
        self._shares: list[torch.Tensor] = []
        self._clips: list[str] = []
        self._high = 0
        self._began: tuple[int, list[str]] = (0, [])

    def check(self, loss: torch.Tensor, clips: list[list[str]], step: int, last: bool = True) -> None:
        """Look at a micro-batch; with the last one, at the step.

        Args:
            loss: what the micro-batch adds to the step's loss; read once a step, as each reading waits for the GPU.
            clips: source_ids of the clips in each window.
            step: its number, from 1.
            last: whether the step is complete with it.

        Raises:
            BadLoss: the loss of the step is no number, or the last ones explode.
        """
        self._shares.append(loss.detach().float())
        self._clips += [clip for window in clips for clip in window]
        if last:
            value, named = float(torch.stack(self._shares).sum()), self._clips
            self._shares, self._clips = [], []
            self._judge(value, named, step)

    def _judge(self, loss: float, clips: list[str], step: int) -> None:
        self.losses.append(loss)
        if not math.isfinite(loss):
            raise BadLoss(f"step {step}: the loss is not a number ({loss})", step, clips, list(self.losses))
        if loss > self.best + self.guessing / 3:
            if self._high == 0:
                self._began = (step, clips)
            self._high += 1
        else:
            self._high = 0
        if self._high == STEPS_IN_A_ROW:
            began, named = self._began
            told = f"step {began}: the loss explodes, from {self.best:.2f} to {min(self.losses):.2f} and more"
            raise BadLoss(told, began, named, list(self.losses))
        if len(self.losses) >= BEST_STEPS:
            self.best = min(self.best, sum(list(self.losses)[-BEST_STEPS:]) / BEST_STEPS)
