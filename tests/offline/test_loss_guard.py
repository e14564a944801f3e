"""The loss guard: fires when the night is lost, and at no other time."""

from __future__ import annotations

import math
import random

import pytest
import torch

from asr.offline.loss_guard import STEPS_IN_A_ROW, BadLoss, LossGuard

VOCABULARY = 51_865
GUESSING = math.log(VOCABULARY)


def watch(losses: list[float]) -> int | None:
    """Give a guard the losses of as many steps, and return the step at which it fires."""
    guard = LossGuard(VOCABULARY)
    for step, loss in enumerate(losses, start=1):
        try:
            guard.check(torch.tensor(loss), [[f"clip-{step}"]], step)
        except BadLoss:
            return step
    return None


def falling(start: float, end: float, steps: int) -> list[float]:
    lot = random.Random(0)
    return [end + (start - end) * math.exp(-5 * step / steps) + lot.gauss(0, 0.3) for step in range(steps)]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_at_once_and_names_the_clips(loss):
    guard = LossGuard(VOCABULARY)
    guard.check(torch.tensor(2.0), [["good"]], 1)
    with pytest.raises(BadLoss, match="step 2: the loss is not a number") as caught:
        guard.check(torch.tensor(loss), [["a", "b"], ["c"]], 2)
    assert (caught.value.step, caught.value.clips) == (2, ["a", "b", "c"])


def test_shares_of_a_step_add_up_and_are_judged_with_the_last():
    """Each micro-batch gives its share of the step's loss: of 4, none tells of it alone."""
    guard = LossGuard(VOCABULARY)
    guard.check(torch.tensor(math.nan), [["a"]], 1, last=False)
    guard.check(torch.tensor(0.5), [["b"]], 1, last=False)
    with pytest.raises(BadLoss) as caught:
        guard.check(torch.tensor(0.5), [["c"]], 1)
    assert caught.value.clips == ["a", "b", "c"]
    quarters = LossGuard(VOCABULARY)
    for step in range(1, STEPS_IN_A_ROW):
        for part in range(4):
            quarters.check(torch.tensor(10.0), [["a"]], step, last=part == 3)
    with pytest.raises(BadLoss, match="explodes"):
        quarters.check(torch.tensor(40.0), [["a"]], STEPS_IN_A_ROW)


@pytest.mark.parametrize(
    "losses",
    [
        [GUESSING] * 100,
        falling(GUESSING + 1, 0.3, 60),
        falling(1.2, 0.2, 200),
        [1.0] * 30 + [50.0] + [1.0] * 30 + [50.0] * (STEPS_IN_A_ROW - 1) + [1.0] * 30,
        [3.0 if step % 2 else 0.1 for step in range(200)],
        [0.2] * 50 + [3.0] * 100,
    ],
    ids=["random model", "random model learns fast", "pretrained model", "odd steps", "uneven clips", "harder clips"],
)
def test_a_healthy_training_goes_on(losses):
    assert watch(losses) is None


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([GUESSING + step for step in range(100)], 23),
        ([1.0] * 50 + [7.5] * 100, 70),
        ([1.0] * 4 + [40.0] * 100, 24),
        (falling(1.2, 0.2, 50) + [0.5 + 0.3 * step for step in range(100)], 81),
    ],
    ids=["from the start", "to what guessing by frequency costs", "after a few steps", "slowly"],
)
def test_an_explosion_is_seen_within_so_many_steps(losses, step):
    assert watch(losses) == pytest.approx(step, abs=2)


def test_an_explosion_names_the_clips_with_which_it_began():
    guard = LossGuard(VOCABULARY)
    for step in range(1, 30 + STEPS_IN_A_ROW):
        guard.check(torch.tensor(1.0 if step < 31 else 9.0), [[f"clip-{step}"]], step)
    with pytest.raises(BadLoss, match=r"step 31: the loss explodes, from 1\.00 to 9\.00") as caught:
        guard.check(torch.tensor(9.0), [["later"]], 30 + STEPS_IN_A_ROW)
    assert (caught.value.step, caught.value.clips) == (31, ["clip-31"])
    assert caught.value.losses == [9.0] * STEPS_IN_A_ROW


def test_the_loss_is_read_once_a_step(monkeypatch):
    """Each reading waits for the GPU."""
    read = []
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: read.append(1) or tensor.item())
    guard = LossGuard(VOCABULARY)
    for part in range(4):
        guard.check(torch.tensor(0.5), [["a"]], 1, last=part == 3)
    assert len(read) == 1
