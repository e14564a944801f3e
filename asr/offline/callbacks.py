"""Callbacks: what happens beside the steps, namely logging, evaluating and keeping the best."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from asr.offline.checks import in_time
from asr.offline.runs import Run
from asr.offline.whisper import save_weights
from asr.shared.progress import progress_bar
from utils import log, write_atomically

# The first steps warm up caches and the GPU; the next ones tell the pace.
FIRST_STEPS, TIMED_STEPS = 2, 5


def error_rates_so_far(state: TrainerState) -> dict[int, float]:
    """Return the validation CER of each step that was evaluated, in their order, also before a resume."""
    return {entry["step"]: entry["eval_cer"] for entry in state.log_history if "eval_cer" in entry}


class KeepBest(TrainerCallback):
    """Keeps the weights of the best validation CER so far as the run's result."""

    def __init__(self, run: Run, base_name: str) -> None:
        self.run, self.base_name = run, base_name
        self.best = run.best.get("cer", math.inf)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        cer = given["metrics"]["eval_cer"]
        if cer < self.best:
            self.best = cer
            save_weights(given["model"], self.run.weights_dir, self.base_name)
            self.run.keep_best(state.global_step, cer)


class EvaluateEvery(TrainerCallback):
    """Asks for an evaluation every so many steps, or at each epoch's end.

    Trainer's own strategy would tie checkpoints to evaluations when the best is kept; here each has its own pace.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Ask for the evaluation that was due when the checkpoint was written, and was broken off."""
        if state.global_step and self._due(state) and state.global_step not in error_rates_so_far(state):
            control.should_evaluate = True

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        # Not at Trainer's epoch end: a checkpoint of the same step would be written before it, and a crash between
        # the two would lose the evaluation.
        if self._due(state):
            control.should_evaluate = True

    def _due(self, state: TrainerState) -> bool:
        epoch_ends = float(state.epoch or 0).is_integer()
        due = state.global_step % self.steps == 0 if self.steps else epoch_ends
        return due or state.global_step == state.max_steps

    def left(self, state: TrainerState) -> int:
        """Return how many evaluations are still due after this step."""
        every = self.steps or max(1, round(state.global_step / (state.epoch or 1)))
        whole = state.max_steps // every - state.global_step // every
        return whole + (state.max_steps % every > 0 and state.global_step < state.max_steps)


class StopEarly(TrainerCallback):
    """Ends the training after so many evaluations in a row that did not better the CER."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self._judge(error_rates_so_far(state), control)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self._judge(error_rates_so_far(state) | {state.global_step: given["metrics"]["eval_cer"]}, control)

    def _judge(self, rates: dict[int, float], control: TrainerControl) -> None:
        steps = list(rates)
        best = min(rates, key=lambda step: rates[step], default=None)
        if best is not None and len(steps) - 1 - steps.index(best) >= self.patience:
            log.info("stopping early: no better CER than %.4f of step %d since", rates[best], best)
            control.should_training_stop = True


class MetricsFile(TrainerCallback):
    """Writes every log as a line of JSON."""

    def __init__(self, run: Run) -> None:
        self.file = run.path / "metrics.jsonl"

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Write what the checkpoint knows, and nothing that a crashed session did after it."""
        write_atomically(self.file, "".join(map(_line, state.log_history)))

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(_line({**given["logs"], "step": state.global_step}))


def _line(entry: dict[str, Any]) -> str:
    # What Trainer says of the whole training covers only the session that ended it.
    if "train_runtime" in entry:
        return ""
    first = {"step": entry["step"], "epoch": entry.get("epoch")}
    finite = {name: value if math.isfinite(value) else None for name, value in entry.items()}
    return json.dumps({**first, **finite}) + "\n"


class ProgressBar(TrainerCallback):
    """One bar with loss, CER and time left, on standard error; after the first steps, what time is expected in words.

    Args:
        evaluations: that the expected time leaves out; None where there are none.
    """

    def __init__(self, evaluations: EvaluateEvery | None = None) -> None:
        self.shown: dict[str, str] = {}
        self.evaluations = evaluations
        self.took: list[float] = []

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.bar = progress_bar(total=state.max_steps, initial=state.global_step, desc="training", unit="step")
        self.since = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.bar.update()
        if len(self.took) < FIRST_STEPS + TIMED_STEPS:
            self.took.append(time.monotonic() - self.since)
            self.since = time.monotonic()
            if len(self.took) == FIRST_STEPS + TIMED_STEPS:
                self._tell(sum(self.took[FIRST_STEPS:]) / TIMED_STEPS, state)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.since = time.monotonic()

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.since = time.monotonic()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        logs = given["logs"]
        self.shown |= {name: f"{logs[key]:.4f}" for name, key in (("loss", "loss"), ("CER", "eval_cer")) if key in logs}
        self.bar.set_postfix(self.shown, refresh=sys.stderr.isatty())
        if "eval_cer" in logs:
            rates = logs["eval_cer"], logs["eval_wer"]
            self._log("step %d: validation CER %.4f, WER %.4f", state.global_step, *rates)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.bar.close()

    def _tell(self, pace: float, state: TrainerState) -> None:
        left = state.max_steps - state.global_step
        evaluations = self.evaluations.left(state) if self.evaluations else 0
        more = f", {evaluations} evaluation{'s' * (evaluations > 1)} not counted" if evaluations else ""
        if left:
            self._log("expected: about %s (%.2g s a step%s)", in_time(left * pace), pace, more)

    def _log(self, line: str, *values: object) -> None:
        with self.bar.external_write_mode():
            log.info(line, *values)
