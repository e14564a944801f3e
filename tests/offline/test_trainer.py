"""Training: the loss of a step, what is kept, and what a resume accepts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file

import download_data
from asr.offline.checkpoints import mark_complete
from asr.offline.decoding import Transcriber
from asr.offline.lock import sole_use
from asr.offline.precision import Precision
from asr.offline.runs import Run, find_run, finish_run, start_run
from asr.offline.trainer import build_trainer, token_mean_loss, train
from asr.offline.whisper import load_whisper
from asr.shared.bundle import open_bundle
from asr.shared.cli import parse
from asr.shared.processor import load_processor
from config import Decoding, DownloadData, TrainOffline, UseRun
from tests.conftest import DEMO_MODEL
from utils import UserError

CPU = Precision("cpu", "none", torch.float32)


def configuration(mini_bundle, tmp_path, *flags: object) -> TrainOffline:
    arguments = ["--bundle-dir", mini_bundle, "--output-dir", tmp_path, "--dataloader-num-workers", 0, *flags]
    return parse(TrainOffline, [str(a) for a in arguments])[0]


def begun(run: Run) -> Run:
    """Give a run the checkpoint without which it counts as not begun."""
    checkpoint = run.checkpoints_dir / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    mark_complete(checkpoint)
    return run


def trained_weights(config: TrainOffline) -> tuple[dict, list[dict]]:
    """Train, and return the weights that were kept and the lines of metrics.jsonl."""
    bundle = open_bundle(config.bundle.bundle_dir)
    run = start_run(config, bundle)
    train(build_trainer(config, bundle, run, CPU), run, bundle.base_name)
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return load_file(run.adapter_dir / "adapter_model.safetensors"), [json.loads(line) for line in lines]


def test_accumulated_batches_weigh_tokens_like_one_batch(mini_bundle, tmp_path):
    """4 x 1 and 1 x 4 are the same step. Trainer's own way made the loss four times as large."""
    common = ["--audio-layout", "padded", "--lora-dropout", 0, "--max-steps", 2, "--warmup-steps", 0,
              "--logging-steps", 1]  # fmt: skip
    one, lines_one = trained_weights(configuration(
        mini_bundle, tmp_path, *common, "--run-name", "one", "--per-device-train-batch-size", 4))  # fmt: skip
    many, lines_many = trained_weights(configuration(
        mini_bundle, tmp_path, *common, "--run-name", "many", "--per-device-train-batch-size", 1,
        "--gradient-accumulation-steps", 4))  # fmt: skip
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (lines_one, lines_many)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name in one:
        torch.testing.assert_close(one[name], many[name], rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def features_bundle(mini_bundle, mini_release, tmp_path_factory):
    """The same clips as the small bundle has, stored as log-mel."""
    bundle = tmp_path_factory.mktemp("features") / "bundle"
    shutil.copytree(mini_bundle, bundle)
    flags = ["--common-voice", mini_release, "--bundle-dir", bundle, "--num-proc", 1, "--store", "features"]
    download_data.main(parse(DownloadData, [str(flag) for flag in flags])[0])
    return bundle


def test_both_kinds_of_storage_hold_the_same_clips(mini_bundle, features_bundle):
    sound, stored = (load_from_disk(str(bundle / "data")) for bundle in (mini_bundle, features_bundle))
    for split in ("train", "validation", "test"):
        for name in ("text", "speaker", "duration_s", "source", "source_id", "labels"):
            assert sound[split][name][:] == stored[split][name][:]
    assert sum(len(row["log_mel"]) for row in stored["train"]) == pytest.approx(
        sum((100 * row["duration_s"] + 3) * 80 * 2 for row in sound["train"]), rel=0.01
    )


def test_both_kinds_of_storage_train_to_the_same_loss(mini_bundle, features_bundle, tmp_path):
    """To the rounding of float16, which moves each value that the encoder reads by 1/1024 at most, up as often as
    down: the losses were found to differ by 5e-7 of themselves. Another clip or another order moves them by 1e-2."""
    flags = ["--lora-dropout", 0, "--max-steps", 4, "--warmup-steps", 0, "--logging-steps", 1]
    losses, evaluations = [], []
    for bundle in (mini_bundle, features_bundle):
        _, lines = trained_weights(configuration(bundle, tmp_path / bundle.parent.name, *flags))
        losses.append([line["loss"] for line in lines if "loss" in line])
        evaluations.append([line["eval_cer"] for line in lines if "eval_cer" in line])
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert evaluations[0] == evaluations[1] != []


def test_both_kinds_of_storage_are_evaluated_to_the_same_text(mini_bundle, features_bundle):
    """By the demo's model, which has learnt to write something."""
    processor = load_processor(DEMO_MODEL, "Korean", "transcribe")
    decoding = Decoding(generation_max_length=32)
    transcriber = Transcriber.of(load_whisper(DEMO_MODEL, CPU), processor, CPU, decoding, trimmed=True)
    texts = [
        transcriber.transcribe_clips(load_from_disk(str(bundle / "data"))["test"])
        for bundle in (mini_bundle, features_bundle)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1, "texts that are all the same would prove nothing"


def test_loss_is_the_mean_over_tokens_not_over_windows():
    """A window of 30 tokens weighs ten times one of 3."""
    logits = torch.randn(2, 30, 7)
    labels = torch.randint(0, 7, (2, 30))
    labels[1, 3:] = -100
    by_hand = torch.nn.functional.cross_entropy(
        torch.cat([logits[0], logits[1, :3]]), torch.cat([labels[0], labels[1, :3]])
    )
    outputs = type("Outputs", (), {"logits": logits})
    torch.testing.assert_close(token_mean_loss(outputs, labels), by_hand)
    torch.testing.assert_close(token_mean_loss(outputs, labels, torch.tensor(66)), by_hand / 2)


@pytest.mark.parametrize("flag", ["--per-device-train-batch-size", "--lora-r", "--seed", "--max-steps"])
def test_resume_with_another_setting_is_refused(mini_bundle, tmp_path, flag):
    """Trainer itself says nothing and trains something that neither run would have been."""
    bundle = open_bundle(mini_bundle)
    begun(start_run(configuration(mini_bundle, tmp_path, "--run-name", "night"), bundle))
    with pytest.raises(UserError, match=flag):
        start_run(configuration(mini_bundle, tmp_path, "--run-name", "night", "--resume", flag, 3), bundle)


def test_resume_on_another_bundle_is_refused(mini_bundle, tmp_path):
    bundle = open_bundle(mini_bundle)
    begun(start_run(configuration(mini_bundle, tmp_path, "--run-name", "night"), bundle))
    with pytest.raises(UserError, match="another bundle"):
        start_run(
            configuration(mini_bundle, tmp_path, "--run-name", "night", "--resume"),
            replace(bundle, manifest_sha256="0" * 64),
        )


def test_a_taken_run_name_is_refused(mini_bundle, tmp_path):
    config = configuration(mini_bundle, tmp_path, "--run-name", "night")
    begun(start_run(config, open_bundle(mini_bundle)))
    with pytest.raises(UserError, match="exists already"):
        start_run(config, open_bundle(mini_bundle))


def test_a_folder_that_is_no_run_is_never_removed(mini_bundle, tmp_path):
    """--output-dir . --run-name bundle must not cost anyone their bundle."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "work.txt").write_text("years of it")
    for more in ((), ("--resume",)):
        with pytest.raises(UserError, match="exists already"):
            start_run(configuration(mini_bundle, tmp_path, "--run-name", "precious", *more), open_bundle(mini_bundle))
    assert (tmp_path / "precious" / "work.txt").read_text() == "years of it"


def test_a_run_that_broke_off_before_its_first_checkpoint_may_begin_again(mini_bundle, tmp_path):
    """After out-of-memory in step 1 the same name is tried with a smaller batch."""
    bundle = open_bundle(mini_bundle)
    start_run(configuration(mini_bundle, tmp_path, "--run-name", "night"), bundle)
    smaller = configuration(mini_bundle, tmp_path, "--run-name", "night", "--per-device-train-batch-size", 4)
    assert start_run(smaller, bundle).record["settings"]["per_device_train_batch_size"] == 4


def test_resume_with_nothing_to_resume_starts_anew(mini_bundle, tmp_path):
    run = start_run(configuration(mini_bundle, tmp_path, "--resume"), open_bundle(mini_bundle))
    assert run.record["status"] == "running"


def test_newest_finished_run_is_found(mini_bundle, tmp_path):
    bundle = open_bundle(mini_bundle)
    for name in ("b-first", "a-second", "c-unfinished"):
        run = start_run(configuration(mini_bundle, tmp_path, "--run-name", name), bundle)
        if name != "c-unfinished":
            finish_run(run, {})
    shutil.copytree(tmp_path / "a-second", tmp_path / "d-broken")
    (tmp_path / "d-broken" / "run.json").write_text("{")
    assert find_run(UseRun(tmp_path), bundle).path.name == "a-second"
    with pytest.raises(UserError, match="did not finish"):
        find_run(UseRun(tmp_path, run=Path("c-unfinished")), bundle)
    with pytest.raises(UserError, match="no run"):
        find_run(UseRun(tmp_path, run=Path("nothing")), bundle)
    with pytest.raises(UserError, match="no finished run"):
        find_run(UseRun(tmp_path / "empty"), bundle)


def test_run_of_another_base_model_is_refused(mini_bundle, tmp_path):
    bundle = open_bundle(mini_bundle)
    run = start_run(configuration(mini_bundle, tmp_path), bundle)
    finish_run(run, {})
    run.update(base_model_sha256={"model/model.safetensors": "0" * 64})
    with pytest.raises(UserError, match="another base model"):
        find_run(UseRun(tmp_path), bundle)


def test_a_run_in_training_is_neither_begun_again_nor_resumed(mini_bundle, tmp_path):
    """Before its first checkpoint it looks like one that broke off, and would be removed."""
    bundle = open_bundle(mini_bundle)
    run = start_run(configuration(mini_bundle, tmp_path, "--run-name", "night"), bundle)
    ready, tell = os.pipe()
    pid = os.fork()
    if not pid:
        with sole_use(run.path):
            os.write(tell, b"x")
            time.sleep(60)
    os.read(ready, 1)
    try:
        for more in ((), ("--resume",)):
            with pytest.raises(UserError, match=f"is in use by process {pid} "):
                start_run(configuration(mini_bundle, tmp_path, "--run-name", "night", *more), bundle)
            if not more:
                begun(run)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert start_run(configuration(mini_bundle, tmp_path, "--run-name", "night", "--resume"), bundle).record


def test_a_crash_before_run_json_leaves_the_name_free(mini_bundle, tmp_path):
    (tmp_path / "night").mkdir()
    (tmp_path / "night" / ".run.json.17.tmp").write_text("{")
    assert start_run(configuration(mini_bundle, tmp_path, "--run-name", "night"), open_bundle(mini_bundle)).record
