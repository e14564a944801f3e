"""The start screen: what it promises is what the training then does."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from asr.offline.precision import Precision
from asr.offline.runs import Run, start_run
from asr.offline.screen import start_screen, tell, tell_end
from asr.offline.trainer import WhisperTrainer, build_trainer, train
from asr.shared.bundle import open_bundle
from tests.offline.test_trainer import configuration

CPU = Precision("cpu", "none", torch.float32)
SHORT = ("--generation-max-length", 8, "--warmup-steps", 0, "--logging-steps", 1)


def told(mini_bundle, folder, *flags: object) -> tuple[Run, WhisperTrainer, list[str]]:
    """Make a training ready, and return what is told of it, line by line."""
    config, bundle = configuration(mini_bundle, folder, "--run-name", "night", *flags), open_bundle(mini_bundle)
    run = start_run(config, bundle)
    trainer = build_trainer(config, bundle, run, CPU)
    tell(config, bundle, run, trainer)
    return run, trainer, start_screen(config, bundle, run, run.record["plan"]).splitlines()


@pytest.mark.parametrize(
    ("flags", "steps", "evaluations", "checkpoints"),
    [
        (("--num-train-epochs", 2), 6, 2, 2),
        (("--num-train-epochs", 1.4, "--gradient-accumulation-steps", 2), 3, 2, 2),
        (("--max-steps", 7, "--eval-steps", 3, "--save-steps", 2, "--save-total-limit", 9), 7, 3, 4),
        (("--max-steps", 2), 2, 1, 1),
    ],
)
def test_steps_evaluations_and_checkpoints_are_as_promised(
    mini_bundle, tmp_path, flags, steps, evaluations, checkpoints
):
    run, trainer, _ = told(mini_bundle, tmp_path, *SHORT, *flags)
    plan = run.record["plan"]
    assert (plan["optimizer_steps"], plan["evaluations"], plan["checkpoints"]) == (steps, evaluations, checkpoints)
    results = train(trainer, run, "base")
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert results["steps"] == steps
    assert sum("eval_cer" in line for line in lines) == evaluations
    assert len(list(run.checkpoints_dir.glob("checkpoint-*"))) == checkpoints
    assert {line["step"] % plan["steps_per_epoch"] == 0 for line in lines if line["epoch"].is_integer()} <= {True}
    assert next(line["learning_rate"] for line in lines if "loss" in line) == plan["learning_rate"]


def test_the_figures_are_those_of_bundle_and_model(mini_bundle, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "whisper"):
        run, trainer, lines = told(mini_bundle, tmp_path, "--audio-layout", "padded")
    assert "\n".join(lines) in caplog.text
    plan = run.record["plan"]
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert plan["trainable_parameters"] == trained
    assert plan["trainable_share"] == trained / plan["parameters"]
    assert (plan["train_clips"], plan["validation_clips"], plan["utterances_per_step"]) == (24, 4, 8)
    assert plan["windows_per_step"] == 8, "padded gives each clip a window of its own"
    hours = open_bundle(mini_bundle).manifest["data"]["splits"]["train"]["hours"]
    # The mini model's windows hold 5 s.
    assert plan["silent_share"] == pytest.approx(1 - 3600 * hours / (24 * 5), abs=0.01)
    screen = "\n".join(lines)
    for part in (
        f"run            {run.path}", "base model     mini-whisper; Korean, transcribe",
        f"train          24 clips, {hours:.2f} h", f"{trained:,} of {plan['parameters']:,} parameters train",
        "padded*: 8.0 windows a step", "8 utterances x 1 accumulated x 1 process",
        "9 (3 epochs of 3); peak learning rate 0.001 after 50", "3, one an epoch; the best CER is kept",
        "augmentation   none",
    ):  # fmt: skip
        assert part in screen


def test_what_is_not_the_default_is_marked_and_nothing_else(mini_bundle, tmp_path):
    *_, plain = told(mini_bundle, tmp_path / "plain")
    assert "*" not in "".join(plain)
    flags = ("--lora-r", 4, "--use-rslora", "--target-modules", "all-linear", "--learning-rate", 3e-4,
             "--eval-steps", 2, "--early-stopping-patience", 3, "--gain-db", 6,
             "--timestamp-probability", 0)  # fmt: skip
    *_, lines = told(mini_bundle, tmp_path / "changed", *flags)
    screen = " ".join(" ".join(lines).split())
    for part in ("r 4*,", "alpha 64,", "rslora*", "on all-linear*", "learning rate 0.0003*", "every 2* steps",
                 "stops after 3* without", "gain db 6.0*", "0 %* with timestamps", "(* not the default)"):  # fmt: skip
        assert part in screen
    assert screen.count("*") == 9, "the eight flags, and what the mark means"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_fits_a_screen_of_80_columns(mini_bundle, tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    flags = ["--speed-perturb", 0.1, "--gain-db", 6, "--noise-snr-db", 10, "--telephone-probability", 0.2,
             "--apply-spec-augment", "--early-stopping-patience", 3]  # fmt: skip
    if method == "lora":
        flags += ["--target-modules", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "--use-dora",
                  "--use-rslora"]  # fmt: skip
    *_, lines = told(mini_bundle, "runs", *flags, "--method", method)
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24


@pytest.mark.parametrize(("warmup", "reached"), [(3, True), (4, False)])
def test_a_learning_rate_that_never_comes_up_is_told(mini_bundle, tmp_path, warmup, reached):
    *_, lines = told(mini_bundle, tmp_path, "--max-steps", 3, "--warmup-steps", warmup)
    assert ("which it never reaches" in " ".join(" ".join(lines).split())) != reached


def test_the_end_tells_the_result_and_where_it_lies(mini_bundle, tmp_path, caplog):
    run = start_run(configuration(mini_bundle, tmp_path, "--run-name", "night"), open_bundle(mini_bundle))
    rates = {"eval_cer": 0.25, "eval_cer_with_spaces": 0.3, "eval_wer": 0.5}
    lines = [{"step": 3, **rates}, {"step": 9, **dict.fromkeys(rates, 0.9)}]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (run.path / "curves.png").write_bytes(b"a picture")
    with caplog.at_level(logging.INFO, "whisper"):
        tell_end(run, {"seconds": 7260, "best_step": 3, "best_validation_cer": 0.25, "steps": 9})
    assert caplog.messages == [
        f"done in 2 h 1 min: {run.path}",
        "best: CER 0.2500, WER 0.5000 on the validation clips, at step 3 of 9",
        f"weights and model card: {run.adapter_dir}",
        f"curves: {run.path / 'curves.png'}",
        "next: python evaluate_model.py",
    ]
