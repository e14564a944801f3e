"""Traps that public recipes for Whisper fall into, and that no error tells of.

Some are tested where the part that could fall in has its tests:
- test_trainer, test_accumulated_batches_weigh_tokens_like_one_batch: the loss is not divided under accumulation
- test_trainer, test_resume_with_another_setting_is_refused: resume with another batch size
- test_sampling, test_a_label_that_the_model_cannot_write_is_refused: labels longer than the decoder's 448 tokens
- test_augmentation, test_stored_features_cannot_be_augmented: augmentation frozen into stored features
- test_whisper, test_a_saved_adapter_fits_the_base_whatever_its_start: a start of the adapters that changes the base
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration

from asr.offline.metrics import error_rates
from asr.offline.precision import Precision
from asr.offline.runs import Run, finish_run, start_run
from asr.offline.systems import Opener, Speaking, find_systems
from asr.offline.trainer import WhisperTrainer, build_trainer, train
from asr.offline.windows import IGNORE
from asr.shared.audio import encode_flac
from asr.shared.bundle import open_bundle
from asr.shared.cli import parse
from asr.shared.clips import spectrum_of
from asr.shared.text import clean_text
from config import Augmentation, Decoding, Device, Lora, Training, TrainOffline, UseRuns

CPU = Precision("cpu", "none", torch.float32)
PROMPT = ["<|startoftranscript|>", "<|ko|>", "<|transcribe|>", "<|notimestamps|>"]
INPUTS = {
    "input_features": torch.randn(1, 80, 500, generator=torch.Generator().manual_seed(5)),
    "decoder_input_ids": torch.tensor([[1, 2, 3]]),
}


def prepared(mini_bundle, folder, *flags: object) -> tuple[WhisperTrainer, Run]:
    arguments = ["--bundle-dir", mini_bundle, "--output-dir", folder, "--dataloader-num-workers", 0, *flags]
    config = parse(TrainOffline, [str(argument) for argument in arguments])[0]
    bundle = open_bundle(mini_bundle)
    run = start_run(config, bundle)
    return build_trainer(config, bundle, run, CPU), run


def prompt_of(model, decode) -> list[int]:
    """The tokens from which a model begins to write, as its decoder gets them."""
    seen: list[list[int]] = []
    tokens = model.get_decoder().embed_tokens
    hook = tokens.register_forward_pre_hook(lambda _, given: seen.append(given[0][0].tolist()))
    try:
        decode()
    finally:
        hook.remove()
    return seen[0]


def logits(model) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(**INPUTS).logits


# Labels and loss


def test_the_decoder_reads_one_start_token_and_learns_what_follows_each_token(mini_bundle, tmp_path, monkeypatch):
    """With the start token in the labels too, Whisper is taught to say it; neither trainer nor model shifts again."""
    trainer, _ = prepared(mini_bundle, tmp_path, "--max-steps", 1, "--timestamp-probability", 0.5)
    read, learnt = [], []
    loss = trainer.compute_loss_func
    monkeypatch.setattr(trainer, "compute_loss_func", lambda outputs, labels, **given: (
        learnt.append(labels), loss(outputs, labels, **given))[1])  # fmt: skip
    trainer.eval_dataset = None
    trainer.callback_handler.callbacks = trainer.callback_handler.callbacks[:1]  # the flow of the training alone
    hook = trainer.model.get_decoder().register_forward_pre_hook(
        lambda _, args, given: read.append((args or (given["input_ids"],))[0]), with_kwargs=True
    )
    trainer.train()
    hook.remove()
    start, language = trainer.transcriber.writer.tokenizer.convert_tokens_to_ids(PROMPT[:2])
    (read,), (learnt,) = read, learnt
    assert read.shape == learnt.shape
    assert (read == start).sum(dim=1).tolist() == [1] * len(read)
    assert read[:, 0].tolist() == [start] * len(read)
    assert learnt[:, 0].tolist() == [language] * len(read)
    told = learnt[:, 1:] != IGNORE
    assert torch.equal(learnt[:, :-1][told], read[:, 1:][told])


# What is measured, and what is kept


def test_error_rates_are_those_of_generated_text(mini_bundle, tmp_path):
    """Teacher forcing gives the model the right text so far, and so rates that nobody will meet."""
    trainer, _ = prepared(mini_bundle, tmp_path, "--generation-max-length", 24)
    rows, model, tokenizer = trainer.eval_dataset, trainer.model.eval(), trainer.transcriber.writer.tokenizer
    often = rows[0]["labels"][len(PROMPT)]
    with torch.no_grad():
        # A model that says one thing for ever: given the right text so far, it stops with that.
        model.get_decoder().layer_norm.bias += 4 * model.get_input_embeddings().weight[often]
    forced, generated = [], []
    for row in rows:
        log_mel = trainer.transcriber.log_mel
        features = log_mel.window(spectrum_of(row, log_mel))[None]
        with torch.no_grad():
            given = torch.tensor(row["labels"][:-1])[None]
            best = model(input_features=features, decoder_input_ids=given).logits.argmax(-1)
            written = model.generate(input_features=features, language="ko", task="transcribe", max_new_tokens=20)
        forced.append(clean_text(tokenizer.decode(best[0], skip_special_tokens=True)))
        generated.append(clean_text(tokenizer.decode(written[0], skip_special_tokens=True)))
    expected, other = (error_rates(texts, rows["text"])["cer"] for texts in (generated, forced))
    assert abs(expected - other) > 0.01, "rates that are the same would prove nothing"
    trainer.callback_handler.callbacks = []
    assert trainer.evaluate()["eval_cer"] == pytest.approx(expected)


def test_the_best_weights_are_those_of_the_best_text_though_the_loss_falls(mini_bundle, tmp_path, monkeypatch):
    """A model that overfits may lose less on its tokens while it writes worse."""
    trainer, run = prepared(mini_bundle, tmp_path, "--max-steps", 4, "--eval-steps", 2, "--save-steps", 2,
                            "--logging-steps", 1, "--learning-rate", 1e-2, "--warmup-steps", 0)  # fmt: skip
    right = list(trainer.eval_dataset["text"])
    texts = iter([lambda text: text, lambda text: text[::-1]])
    monkeypatch.setattr(trainer.transcriber, "transcribe_clips",
                        lambda rows, *_: list(map(next(texts), rows["text"])))  # fmt: skip
    train(trainer, run, "base")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[1], "the loss has to speak for the later weights"
    assert next(texts, None) is None
    assert right != [text[::-1] for text in right]
    kept, second, last = (load_file(folder / "adapter_model.safetensors") for folder in (
        run.adapter_dir, run.checkpoints_dir / "checkpoint-2", run.checkpoints_dir / "checkpoint-4"))  # fmt: skip
    assert all(torch.equal(kept[name], second[name]) for name in kept)
    assert not all(torch.equal(kept[name], last[name]) for name in kept)
    assert run.best["step"] == 2


# What is reloaded


@dataclass
class Finished:
    """A finished run, and what its model answered before it was gone."""

    run: Run
    logits: torch.Tensor


@pytest.fixture(scope="module", params=["lora", "full"])
def finished(mini_bundle, tmp_path_factory, request) -> Finished:
    trainer, run = prepared(mini_bundle, tmp_path_factory.mktemp(request.param), "--method", request.param,
                            "--max-steps", 3, "--learning-rate", 1e-2, "--warmup-steps", 0, "--generation-max-length",
                            12)  # fmt: skip
    results = train(trainer, run, "some/base")
    assert results["best_step"] == 3
    finish_run(run, results)
    return Finished(run, logits(trainer.model))


@pytest.fixture
def opened(mini_bundle, finished):
    """Transcribers of the base and of the run."""
    bundle = open_bundle(mini_bundle)
    systems = find_systems(UseRuns(finished.run.path.parent, (finished.run.path,)), bundle)
    speaking = Speaking(bundle.language, bundle.task)
    opener = Opener(Device(cuda_visible_devices=""), Decoding(generation_max_length=8), speaking)
    with opener.open(systems[0]) as base, opener.open(systems[1]) as tuned:
        yield base, tuned


def test_reloaded_weights_answer_as_the_trained_ones_did_and_not_as_the_base(finished, opened):
    """An adapter whose names do not fit is loaded without a word, and changes nothing."""
    base, tuned = (logits(transcriber.writer.model) for transcriber in opened)
    torch.testing.assert_close(tuned, finished.logits, rtol=0, atol=1e-5)
    assert (base - tuned).abs().max() > 0.1


def test_language_and_task_are_asked_for_after_a_reload(opened):
    """Else the model guesses the language, which the training has made it forget."""
    for transcriber in opened:
        wanted = transcriber.writer.tokenizer.convert_tokens_to_ids(PROMPT)
        assert prompt_of(transcriber.writer.model, lambda: transcriber.transcribe([np.zeros(8000, "f4")])) == wanted  # noqa: B023


@pytest.mark.parametrize("finished", ["full"], indirect=True)
def test_a_whole_model_asks_for_them_by_itself(finished, opened):
    """Whoever opens runs/NAME/model with transformers alone gets the language that it was tuned for."""
    model = WhisperForConditionalGeneration.from_pretrained(finished.run.model_dir)
    features = INPUTS["input_features"]
    prompt = prompt_of(model, lambda: model.generate(input_features=features, max_new_tokens=2))
    assert prompt == opened[1].writer.tokenizer.convert_tokens_to_ids(PROMPT)


@pytest.mark.parametrize("finished", ["lora"], indirect=True)
def test_task_type_stays_unset(finished):
    """With SEQ_2_SEQ_LM, PEFT feeds input_ids to a model that reads input_features."""
    file = finished.run.adapter_dir / "adapter_config.json"
    assert json.loads(file.read_text(encoding="utf-8"))["task_type"] is None


def test_a_resumed_run_finds_the_base_weights_that_it_left(mini_bundle, tmp_path):
    """Checkpoints hold adapters alone. What these began with is taken out of the base anew, bit for bit."""
    flags = ("--run-name", "night", "--init-lora-weights", "pissa_niter_2", "--lora-r", 8, "--use-dora", "--max-steps",
             4, "--save-steps", 2, "--learning-rate", 1e-2, "--generation-max-length", 8)  # fmt: skip
    trainer, run = prepared(mini_bundle, tmp_path, *flags)
    train(trainer, run, "some/base")
    shutil.rmtree(run.checkpoints_dir / "checkpoint-4")
    torch.manual_seed(99)
    resumed, run = prepared(mini_bundle, tmp_path, *flags, "--resume")
    assert not torch.equal(logits(resumed.model), logits(trainer.model))
    train(resumed, run, "some/base")
    assert torch.equal(logits(resumed.model), logits(trainer.model))


# Options that do nothing

# Each knob with another value than its default, and where that has to show: in the model's layers, its adapters' scale
# or first weights, the trainer's arguments or callbacks, the windows of the first epoch, the tensors of the first
# micro-batch, or its loss in training.
LORA = {
    "method": ("full", "layers"),
    "lora_r": (4, "layers"),
    "lora_alpha": (128, "scales"),
    "lora_dropout": (0.5, "layers"),
    "target_modules": ("all-linear", "layers"),
    "use_rslora": (True, "scales"),
    "use_dora": (True, "layers"),
    "init_lora_weights": ("pissa", "weights"),
}
TRAINING = {
    "per_device_train_batch_size": (4, "windows"),
    "gradient_accumulation_steps": (3, "windows"),
    "learning_rate": (0.5, "arguments"),
    "num_train_epochs": (7, "arguments"),
    "max_steps": (7, "arguments"),
    "warmup_steps": (7, "arguments"),
    "audio_layout": ("trimmed", "batch"),
    "timestamp_probability": (1, "batch"),
    "gradient_checkpointing": ("on", "arguments"),
    "eval_steps": (7, "callbacks"),
    "early_stopping_patience": (7, "callbacks"),
    "save_steps": (7, "arguments"),
    "save_total_limit": (7, "arguments"),
    "logging_steps": (7, "arguments"),
    "dataloader_num_workers": (1, "arguments"),
}
AUGMENTATION = {
    "speed_perturb": (0.3, "batch"),
    "gain_db": (20, "batch"),
    "noise_snr_db": (0, "batch"),
    "noise_dir": ("noises", "batch"),
    "telephone_probability": (1, "batch"),
    "apply_spec_augment": (True, "loss"),
    "mask_time_prob": (0.5, "loss"),
    "mask_feature_prob": (0.5, "loss"),
}
KNOBS = LORA | TRAINING | AUGMENTATION
# Without these, others do nothing, and the command line says so.
NEEDED = {
    "noise_dir": ("--noise-snr-db", 0),
    "mask_time_prob": ("--apply-spec-augment",),
    "mask_feature_prob": ("--apply-spec-augment",),
}
# What it does is the whole of tests/test_faults.py.
ELSEWHERE = {"resume"}


def test_every_knob_of_the_training_is_looked_at():
    groups = ((Lora, LORA), (Training, TRAINING), (Augmentation, AUGMENTATION))
    for group, looked_at in groups:
        assert {field.name for field in fields(group)} - ELSEWHERE == set(looked_at)


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noises")
    tone = 0.1 * np.sin(np.arange(160_000) / 5)
    (folder / "hum.flac").write_bytes(encode_flac(tone.astype(np.float32)))
    return folder


@pytest.fixture(scope="module")
def seen(mini_bundle, tmp_path_factory):
    """Return what there is to be seen of a training with these flags, before its first step."""

    @cache
    def look(*flags: object) -> dict[str, Any]:
        trainer, _ = prepared(mini_bundle, tmp_path_factory.mktemp("seen"), *flags)
        model = trainer.model.train()
        batch = next(iter(trainer.get_train_dataloader()))
        sources = batch.pop("source_ids")
        torch.manual_seed(0)
        np.random.seed(0)
        paths = ("output_dir", "logging_dir", "run_name")
        plain = (int, float, bool, type(None))
        return {
            "layers": str(model),
            "scales": {module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)},
            "weights": [p.tolist() for name, p in model.named_parameters() if "lora_A" in name],
            "arguments": {name: value for name, value in trainer.args.to_dict().items() if name not in paths},
            "windows": trainer.sampler.epoch.batches,
            "batch": (sources, {name: tensor.tolist() for name, tensor in batch.items()}),
            "callbacks": [(type(callback).__name__, {name: value for name, value in vars(callback).items()
                           if isinstance(value, plain)}) for callback in trainer.callback_handler.callbacks],
            "loss": trainer.compute_loss(model, batch).item(),
        }  # fmt: skip

    return look


def test_what_is_seen_hangs_on_the_knobs_alone(seen):
    assert seen() == seen("--run-name", "again")


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_does_something(knob, seen, noises):
    """AdaLoRA's schedule, which nothing calls, is the classic; it is not offered here."""
    value, where = KNOBS[knob]
    needed = NEEDED.get(knob, ())
    flag = "--" + knob.replace("_", "-")
    given = (flag,) if value is True else (flag, noises if value == "noises" else value)
    assert seen(*needed)[where] != seen(*needed, *given)[where]


def test_gradient_checkpointing_computes_each_layer_twice(mini_bundle, tmp_path):
    """And nothing else: with frozen weights and the wrong kind of it, there would be no gradients."""
    calls, weights = [], []
    for choice in ("off", "on"):
        trainer, _ = prepared(mini_bundle, tmp_path / choice, "--gradient-checkpointing", choice, "--max-steps", 1,
                              "--warmup-steps", 0, "--lora-dropout", 0)  # fmt: skip
        trainer.callback_handler.callbacks = trainer.callback_handler.callbacks[:1]
        calls.append(0)

        def count(*_: object) -> None:
            calls[-1] += 1

        trainer.model.get_encoder().layers[0].fc1.register_forward_pre_hook(count)
        trainer.eval_dataset = None
        trainer.train()
        weights.append({name: p for name, p in trainer.model.named_parameters() if p.requires_grad})
    assert calls[1] == 2 * calls[0] > 0
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight)
