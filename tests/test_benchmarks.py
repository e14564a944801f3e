"""Benchmarks: both sides are given the same to do, and the tables say what was measured."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import layouts, measuring, plain_recipe, train
from benchmarks.layouts import BASE, Judged
from benchmarks.measuring import Usage, mean_while_busy, measure, reporting
from benchmarks.models import SIZES, make_model
from benchmarks.speech import choose, join_neighbours, mean_seconds, read_clips
from benchmarks.train import LAYOUTS, Result, Trial

BATCH, STEPS, EPOCHS = 8, 4, 2
CLIPS = BATCH * STEPS // EPOCHS


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A few clips of the demo in a bundle, and as the plain recipe prepares them, for a model with 128 mel bins."""
    work = tmp_path_factory.mktemp("trial")
    clips = read_clips()[:CLIPS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "mini", (64, 1, 2, 128))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        train.make_bundle(clips, make_model("mini", work / "model"), work / "bundle", work / "clips")
        plain_recipe.prepare(work / "bundle", work / "features")
        speech_s = sum(clip.seconds for clip in clips)
        yield Trial(work / "bundle", work / "features", work, CLIPS, speech_s, EPOCHS, STEPS, BATCH, "cpu", 42)


def test_both_sides_train_on_the_same_windows_and_labels(trial: Trial) -> None:
    """Otherwise the faster one might do less, or the plain one might double its start token."""
    import torch
    from datasets import load_from_disk
    from transformers.models.whisper.modeling_whisper import shift_tokens_right

    from asr.offline.augmentation import Augmenter
    from asr.offline.sampling import Heard, Window
    from asr.offline.windows import WindowCollator
    from asr.shared.features import LogMel
    from config import Augmentation

    processor = plain_recipe.load_processor(trial.bundle)
    start = processor.tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    rows, prepared = load_from_disk(str(trial.bundle / "data"))["train"], load_from_disk(str(trial.features))
    assert list(rows["text"]) == list(prepared["text"]) == [clip.text for clip in read_clips()[:CLIPS]]

    theirs = plain_recipe.PaddingCollator(processor, start)([prepared[i] for i in range(BATCH)])
    collator = WindowCollator(processor.tokenizer, LogMel(128), "padded", Augmenter(Augmentation()))
    ours = collator([Heard(Window((i,), (1.0,), False, 0), [rows[i]]) for i in range(BATCH)])
    assert torch.equal(theirs["labels"], ours["labels"])
    assert (theirs["labels"][:, 0] != start).all()
    shifted = shift_tokens_right(theirs["labels"], processor.tokenizer.pad_token_id, start)
    assert torch.equal(shifted, ours["decoder_input_ids"])
    assert theirs["input_features"].shape == (BATCH, 128, 3000)
    torch.testing.assert_close(theirs["input_features"], ours["input_features"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_hears_every_clip_once_an_epoch_in_the_same_steps(trial: Trial, layout: str) -> None:
    from datasets import load_from_disk
    from transformers import WhisperConfig

    from asr.offline.sampling import WindowSampler
    from asr.shared.cli import parse
    from config import TrainOffline

    config, _ = parse(TrainOffline, train.training_flags(trial, layout))
    rows = load_from_disk(str(trial.bundle / "data"))["train"]
    model = WhisperConfig.from_pretrained(trial.bundle / "model")
    sampler = WindowSampler.of(rows, config, model, layout)
    for epoch in range(trial.epochs):
        sampler.set_epoch(epoch)
        heard = [clip for batch in sampler for window in batch for clip in window.clips]
        assert sorted(heard) == list(range(CLIPS))
    assert sampler.steps_per_epoch * trial.epochs == trial.steps


def test_the_silence_of_both_sides_is_counted_alike(trial: Trial) -> None:
    theirs = train.padded_silence(trial)
    assert theirs == pytest.approx(train.silent_share(trial, "padded"), abs=1e-3)
    assert train.silent_share(trial, "packed") < theirs
    assert train.silent_share(trial, "trimmed") < theirs


@pytest.mark.parametrize(
    ("available", "steps", "expected"),
    [(984, 20, (160, 1, 20)), (648, 120, (480, 2, 120)), (20, 5, (8, 3, 3)), (8, 1, (8, 1, 1))],
)
def test_a_training_has_whole_epochs_of_full_batches(
    available: int, steps: int, expected: tuple[int, int, int]
) -> None:
    assert train.plan(available, steps, BATCH) == expected


def test_joined_neighbours_keep_every_word_and_stay_with_their_speaker() -> None:
    clips = read_clips()[:100]
    joined = join_neighbours(clips, 2 * mean_seconds(clips))
    assert mean_seconds(joined) == pytest.approx(2 * mean_seconds(clips), rel=0.05)
    in_order = sorted(clips, key=lambda clip: clip.speaker)
    assert " ".join(clip.text for clip in joined) == " ".join(clip.text for clip in in_order)
    assert [file for clip in joined for file in clip.files] == [file for clip in in_order for file in clip.files]
    speaker = {clip.files[0]: clip.speaker for clip in clips}
    assert all({speaker[file] for file in clip.files} == {clip.speaker} for clip in joined)
    assert join_neighbours(clips, 1) == clips


def test_chosen_clips_are_as_long_as_all_of_them_and_none_comes_twice() -> None:
    clips = read_clips()
    chosen = choose(clips, 16, seed=1)
    assert mean_seconds(chosen) == pytest.approx(mean_seconds(clips), rel=0.02)
    assert len({clip.files for clip in chosen}) == 16
    assert choose(clips, 16, seed=1) == chosen != choose(clips, 16, seed=2)


def test_ratios_are_of_utterances_a_second_against_the_plain_recipe(trial: Trial) -> None:
    results = [
        Result("plain recipe", Usage(100.0, 3_000_000_000), 80.0, 9.5, 0.89),
        Result("train_offline.py, packed", Usage(20.0, 1_000_000_000), 10.0, 9.4, 0.07),
    ]
    table = train.as_table(results, trial, "tiny").splitlines()
    assert "16 clips" in table[0]
    assert "32 utterances" in table[0]
    assert table[-2] == "| plain recipe | 100 s | 0.32 | 1.0 | 80 s | 0.40 | 1.0 | 89.0 % | 3,000 MB | 9.500 |"
    assert table[-1] == (
        "| train_offline.py, packed | 20 s | 1.60 | 5.0 | 10 s | 3.20 | 8.0 | 7.0 % | 1,000 MB | 9.400 |"
    )
    assert len({line.count("|") for line in table[3:]}) == 1


def test_the_table_of_layouts_gives_the_mean_of_the_seeds_and_their_spread() -> None:
    judged = [Judged(BASE, (0.5, 0.6)), *(Judged(name, (0.1, 0.2), 60) for name in layouts.TRAININGS)]
    judged.append(Judged("packed", (0.3, 0.2), 80))
    options = argparse.Namespace(bundle=None, seeds=[1, 2], max_steps=-1, device="cpu")
    table = layouts.as_table(judged, options).splitlines()
    assert f"| {BASE} | 0.5000 | 0.6000 |  |" in table
    assert "| packed | 0.2000 (0.1000 to 0.3000) | 0.2000 | 70 s (60 s to 80 s) |" in table
    assert "| padded | 0.1000 | 0.2000 | 60 s |" in table


def test_the_gpu_is_judged_from_its_first_to_its_last_work() -> None:
    assert mean_while_busy([0, 0, 50, 0, 100, 0]) == 50
    assert mean_while_busy([0, 0]) is None


def test_what_is_measured_is_the_whole_command_and_a_failure_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is too short to be looked at with long rests.
    monkeypatch.setattr(measuring, "LARGEST_SHARE", 1)
    script = tmp_path / "script.py"
    script.write_text("import sys\nblock = bytearray(10**8)\nblock[::4096] = b'x' * len(block[::4096])\n")
    script.write_text(script.read_text() + "import time; time.sleep(0.5)\nsys.exit(int(sys.argv[1]))\n")
    usage = measure(reporting(tmp_path / "gpu.json", script, 0))
    assert usage.seconds > 0.5
    assert usage.memory > 10**8
    assert (tmp_path / "gpu.json").read_text() == '{"gpu_memory": null}'
    with pytest.raises(SystemExit, match="failed"):
        measure(reporting(tmp_path / "gpu.json", script, 1))


def test_speech_of_ones_own_needs_both_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--speech", os.fspath(tmp_path)])
    with pytest.raises(SystemExit):
        train.parse()
