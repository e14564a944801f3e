"""Benchmarks: both sides are given the same to do, and the tables say what was measured."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import evaluate, inference, layouts, measuring, plain_evaluation, plain_recipe, train
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
        model = make_model("mini", work / "model", endless=True)
        train.make_bundle(clips, model, work / "bundle", work / "clips")
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


@pytest.mark.parametrize("benchmark", [train, evaluate, inference])
def test_speech_of_ones_own_needs_both_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, benchmark: ModuleType
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--speech", os.fspath(tmp_path)])
    with pytest.raises(SystemExit):
        benchmark.parse()


# Evaluations


@pytest.fixture(scope="module")
def heard(trial: Trial) -> evaluate.Trial:
    """The same clips and model, and an adapter that changes much, in a run whose windows were cut."""
    import torch

    run = trial.work / "runs" / "tuned"
    model = plain_recipe.load_model(trial.bundle, "none", "cpu")
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(run / "adapter")
    (run / "run.json").write_text(json.dumps({"audio_layout": "trimmed"}), encoding="utf-8")
    return evaluate.Trial("mini", trial.bundle, "train", run, trial.work, 12, CLIPS, trial.speech_s, BATCH, "cpu")


def test_both_sides_write_the_same_texts_with_the_adapter_and_judge_them_alike(heard: evaluate.Trial) -> None:
    from datasets import load_from_disk

    from asr.shared.text import clean_text

    options = argparse.Namespace(
        bundle=heard.bundle,
        split=heard.split,
        adapter=heard.run / "adapter",
        batch=BATCH,
        max_new_tokens=heard.most_tokens - evaluate.PROMPT_TOKENS,
        quantization="none",
        device="cpu",
    )
    theirs = plain_evaluation.evaluate(options)
    texts = list(map(clean_text, theirs["texts"]))
    assert len(set(texts)) > CLIPS // 2, "texts that are the same anyway would tell nothing"
    padded = evaluate.ours(heard, "padded")
    assert padded.texts == texts
    assert padded.cer == pytest.approx(theirs["cer"])

    processor = plain_recipe.load_processor(heard.bundle)
    base = plain_recipe.load_base(heard.bundle, "none", "cpu").eval()
    rows = load_from_disk(str(heard.bundle / "data"))["train"]
    untuned, said = plain_evaluation.transcribe(base, processor, rows, options)
    assert said == list(rows["text"])
    assert list(map(clean_text, untuned)) != texts


@pytest.mark.parametrize("layout", evaluate.LAYOUTS)
def test_where_an_adapter_lies_says_how_it_is_decoded(heard: evaluate.Trial, layout: str) -> None:
    from asr.offline.systems import find_systems
    from asr.shared.bundle import open_bundle
    from config import UseRuns

    adapter = evaluate.adapter_of(heard, layout)
    (system,) = find_systems(UseRuns(model=(adapter,)), open_bundle(heard.bundle))
    assert system.window == layout
    weights = "adapter_model.safetensors"
    assert (adapter / weights).read_bytes() == (heard.run / "adapter" / weights).read_bytes()


def test_a_text_of_random_weights_has_all_the_tokens_that_it_may(trial: Trial) -> None:
    import torch
    from transformers import WhisperForConditionalGeneration

    from asr.offline.greedy import GreedyDecoder

    model = WhisperForConditionalGeneration.from_pretrained(trial.bundle / "model", dtype=torch.float32).eval()
    tokenizer = plain_recipe.load_processor(trial.bundle).tokenizer
    prompt = tokenizer.prefix_tokens
    assert len(prompt) == evaluate.PROMPT_TOKENS
    with torch.no_grad():
        written = GreedyDecoder(model, prompt, 40)(torch.randn(4, 128, 3000))
    assert list(map(len, written)) == [40] * 4
    assert max(map(max, written)) < tokenizer.eos_token_id
    assert evaluate.mean_tokens([[1] * 12, [1] * 17]) == 14


def test_every_model_is_evaluated_at_every_length_but_the_demo_once() -> None:
    options = argparse.Namespace(model_size=["tiny", "base", "demo"], seconds=[3.3, 5.0])
    wanted = [("tiny", 3.3), ("tiny", 5.0), ("base", 3.3), ("base", 5.0), ("demo", 0)]
    assert list(evaluate.planned(options)) == wanted
    options.seconds = None
    assert list(evaluate.planned(options)) == [("tiny", 0), ("base", 0), ("demo", 0)]


def test_a_report_is_read_as_it_was_written_and_only_with_the_window_that_was_meant(tmp_path: Path) -> None:
    from asr.offline.evaluation_report import write_results
    from asr.offline.results import Evaluation, Output, Utterances

    texts = ["=1+1", "'=a", "'tis", "가 나"]
    said = Utterances("test", list("abcd"), ["가 나"] * 4, [1.0] * 4, [None] * 4, [None] * 4, [None] * 4)
    write_results(tmp_path, [Evaluation(said, [Output("adapter", "padded", texts, 2.5)])], {}, lambda name, at: None)
    seconds, read, cer = evaluate.read_report(tmp_path, "padded")
    assert (seconds, read) == (2.5, texts)
    assert cer == pytest.approx((4 + 3 + 4 + 0) / 12)
    with pytest.raises(SystemExit, match="not trimmed"):
        evaluate.read_report(tmp_path, "trimmed")


def test_the_table_of_evaluations_compares_speed_and_texts_with_the_plain_loop(heard: evaluate.Trial) -> None:
    theirs = [str(number) for number in range(CLIPS)]
    plain = evaluate.Result("plain loop", Usage(100.0, 3_000_000_000), 80.0, theirs, 0.5)
    ours = evaluate.Result("evaluate_model.py, trimmed", Usage(20.0, 10**9), 10.0, ["0", *theirs[:-1]], 0.25)
    table = evaluate.as_table([plain, ours], heard).splitlines()
    assert "16 clips" in table[0]
    assert "16 different texts" in table[0]
    assert table[-2] == ("| plain loop | 100.0 s | 0.16 | 1.0 | 80.0 s | 0.20 | 1.0 | 3,000 MB | 100.0 % | 0.5000 |")
    assert table[-1] == (
        "| evaluate_model.py, trimmed | 20.0 s | 0.80 | 5.0 | 10.0 s | 1.60 | 8.0 | 1,000 MB | 6.2 % | 0.2500 |"
    )
    assert len({line.count("|") for line in table[3:]}) == 1
    on_gpu = [dataclasses.replace(plain, usage=Usage(100.0, 10**9, 50.0), gpu_memory=2 * 10**9)]
    table = evaluate.as_table(on_gpu, dataclasses.replace(heard, device="cuda")).splitlines()
    assert "| 2,000 MB | 50 % |" in table[-1]
    assert len({line.count("|") for line in table[3:]}) == 1
