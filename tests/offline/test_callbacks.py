"""Callbacks: what is logged, evaluated, kept, and when it is enough."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState

import asr.offline.callbacks
from asr.offline.callbacks import EvaluateEvery, KeepBest, MetricsFile, ProgressBar, StopEarly
from asr.offline.runs import Run


def after(step: int, rates: dict[int, float] | None = None, **more: object) -> TrainerState:
    """Return the state after `step` of an epoch of 3, with the CER of steps that were evaluated."""
    history = [{"step": at, "epoch": at / 3, "eval_cer": rate} for at, rate in (rates or {}).items()]
    return TrainerState(global_step=step, epoch=step / 3, log_history=history, **{"max_steps": 7, **more})


def test_the_best_weights_are_those_of_the_lowest_cer(tmp_path, monkeypatch):
    """A later evaluation with a worse CER, or an equal one, leaves the kept weights alone."""
    run = Run(tmp_path)
    (tmp_path / "run.json").write_text('{"settings": {"method": "lora"}}')
    saved = []
    monkeypatch.setattr(asr.offline.callbacks, "save_weights", lambda model, folder, name: saved.append(model))
    keep = KeepBest(run, "base")
    for step, cer in enumerate([0.9, 0.5, 0.5, 0.7, 0.4], start=1):
        keep.on_evaluate(None, after(step), None, metrics={"eval_cer": cer}, model=step)
    assert saved == [1, 2, 5]
    assert run.best == {"step": 5, "cer": 0.4}
    assert KeepBest(run, "base").best == 0.4


@pytest.mark.parametrize(("every", "due"), [(0, [3, 6, 7]), (2, [2, 4, 6, 7]), (7, [7])])
def test_evaluations_are_due_before_the_checkpoint_of_their_step(every, due):
    """At an epoch's last step rather than behind it: a crash in between would lose the evaluation."""
    found = []
    for step in range(1, 8):
        control = TrainerControl()
        EvaluateEvery(every).on_step_end(None, after(step), control)
        found += [step] if control.should_evaluate else []
        assert EvaluateEvery(every).left(after(step)) == len([at for at in due if at > step])
    assert found == due


@pytest.mark.parametrize(
    ("state", "owed"),
    [
        (after(0), False),
        (after(4), False),
        (after(3), True),
        (after(3, {3: 0.5}), False),
        (after(6, {3: 0.5}), True),
        (after(7, {3: 0.5, 6: 0.5}), True),
    ],
)
def test_an_evaluation_that_was_broken_off_is_owed(state, owed):
    """The checkpoint knows which steps were evaluated."""
    control = TrainerControl()
    EvaluateEvery(0).on_train_begin(None, state, control)
    assert control.should_evaluate == owed


def evaluated(patience: int, rates: list[float], resumed_after: int = 0) -> int | None:
    """Return after how many evaluations the training stops; a resumed one has a new callback and the old history."""
    stop = StopEarly(patience)
    known: dict[int, float] = {}
    for number, rate in enumerate(rates, start=1):
        control = TrainerControl()
        if number == resumed_after + 1:
            stop = StopEarly(patience)
            stop.on_train_begin(None, after(number - 1, known), control)
            if control.should_training_stop:
                return number - 1
        stop.on_evaluate(None, after(number, known), control, metrics={"eval_cer": rate})
        known[number] = rate
        if control.should_training_stop:
            return number
    return None


@pytest.mark.parametrize("resumed_after", range(7))
@pytest.mark.parametrize(
    ("patience", "rates", "end"),
    [
        (2, [0.9, 0.8, 0.8, 0.85, 0.1, 0.1, 0.1], 4),
        (3, [0.9, 0.8, 0.8, 0.85, 0.1, 0.2, 0.3], None),
        (1, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.4], 7),
        (1, [0.9, 0.9], 2),
    ],
)
def test_early_stopping_counts_alike_across_a_resume(patience, rates, end, resumed_after):
    """Evaluations in a row that did not better the best CER of all; an equal one does not."""
    if end is None or resumed_after <= end:
        assert evaluated(patience, rates, resumed_after) == end


def read(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_metrics_file_holds_json_even_where_a_gradient_overflowed(tmp_path):
    metrics = MetricsFile(Run(tmp_path))
    metrics.on_log(None, after(1), None, logs={"loss": 1.5, "grad_norm": float("nan"), "epoch": 1 / 3})
    assert read(tmp_path) == [{"step": 1, "epoch": 1 / 3, "loss": 1.5, "grad_norm": None}]


def test_metrics_are_those_that_the_checkpoint_knows(tmp_path):
    """No step stands twice in metrics.jsonl, a line that a crash cut short is gone, one that was lost is back."""
    metrics = MetricsFile(Run(tmp_path))
    lost_and_late = ['{"step": 1, "epoch": 0.5, "eval_cer": 0.9}', '{"step": 4, "eval_cer": 0.7}', '{"step": 4, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lost_and_late), encoding="utf-8")
    metrics.on_train_begin(None, after(3, {1: 0.9, 3: 0.8}), None)
    assert [(line["step"], line["eval_cer"]) for line in read(tmp_path)] == [(1, 0.9), (3, 0.8)]
    again = dict(read(tmp_path)[-1])
    del again["step"]
    metrics.on_log(None, after(3), None, logs=again)
    first, second = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    assert first == second, "written anew, a line has the same bytes"


def test_what_a_session_says_of_itself_is_no_metric_of_the_run(tmp_path):
    """Trainer's last line covers the steps since the last resume."""
    MetricsFile(Run(tmp_path)).on_log(None, after(7), None, logs={"train_runtime": 1.0, "train_loss": 2.0})
    assert read(tmp_path) == []


def test_the_expected_time_is_told_once_and_leaves_evaluations_out(monkeypatch, caplog, capsys):
    """Two steps warm up, five are timed: of 1 s each here, with evaluations and checkpoints of 100 s between."""
    now = [0.0]
    monkeypatch.setattr(asr.offline.callbacks.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(logging.getLogger("whisper"), "propagate", True)
    bar = ProgressBar(EvaluateEvery(10))
    bar.on_train_begin(None, after(100, max_steps=4000), None)
    with caplog.at_level(logging.INFO, "whisper"):
        for step in range(101, 120):
            now[0] += 50 if step < 103 else 1
            bar.on_step_end(None, after(step, max_steps=4000), None)
            now[0] += 100
            bar.on_evaluate(None, after(step), None)
            now[0] += 100
            bar.on_save(None, after(step), None)
    bar.on_log(None, after(120), None, logs={"loss": 1.23456})
    bar.on_train_end(None, after(120), None)
    assert [record.message for record in caplog.records] == [
        "expected: about 65 min (1 s a step, 390 evaluations not counted)"
    ]
    assert re.search(r"training: .* 119/4000 .*loss=1\.2346", capsys.readouterr().err)
