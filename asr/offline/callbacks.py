"""Callbacks: what happens beside the steps, namely logging, evaluating and keeping the best."""

from __future__ import annotations

import json
import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from asr.offline.runs import Run
from asr.offline.whisper import save_weights
from asr.shared.progress import progress_bar
from utils import log, write_atomically


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

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        # Not at Trainer's epoch end: a checkpoint of the same step would be written before it, and a crash between
        # the two would lose the evaluation.
        epoch_ends = float(state.epoch or 0).is_integer()
        due = state.global_step % self.steps == 0 if self.steps else epoch_ends
        if due or state.global_step == state.max_steps:
            control.should_evaluate = True


class MetricsFile(TrainerCallback):
    """Writes every log as a line of JSON."""

    def __init__(self, run: Run) -> None:
        self.file = run.path / "metrics.jsonl"

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Drop what a crashed session wrote after the checkpoint from which this one goes on."""
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= state.global_step]
        write_atomically(self.file, "".join(f"{line}\n" for line in kept))

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        logs = {name: value if math.isfinite(value) else None for name, value in given["logs"].items()}
        entry = {"step": state.global_step, "epoch": state.epoch, **logs}
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


class ProgressBar(TrainerCallback):
    """One bar with loss, CER and time left, on standard error."""

    def __init__(self) -> None:
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.bar = progress_bar(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.bar.update()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        logs = given["logs"]
        self.shown |= {name: f"{logs[key]:.4f}" for name, key in (("loss", "loss"), ("CER", "eval_cer")) if key in logs}
        self.bar.set_postfix(self.shown)
        if "eval_cer" in logs:
            with self.bar.external_write_mode():
                rates = logs["eval_cer"], logs["eval_wer"]
                log.info("step %d: validation CER %.4f, WER %.4f", state.global_step, *rates)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.bar.close()
