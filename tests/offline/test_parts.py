"""Parts: a step that ran out of memory ends as if it had not."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from asr.offline.decoding import Transcriber
from asr.offline.parts import Parts, Whole, cut
from asr.offline.precision import Precision
from asr.offline.runs import start_run
from asr.offline.trainer import build_trainer, token_mean_loss
from asr.offline.whisper import attach_lora, load_whisper
from asr.offline.windows import IGNORE
from asr.shared.bundle import open_bundle
from asr.shared.cli import parse
from asr.shared.processor import load_processor
from config import Decoding, Lora, TrainOffline
from tests.conftest import DEMO_MODEL
from utils import WhisperError

CPU = Precision("cpu", "none", torch.float32)
ALLOCATOR = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GB"


@pytest.fixture(params=["lora", "full"])
def model(mini_model, request):
    torch.manual_seed(0)
    base = load_whisper(mini_model, CPU, full_weights=True)
    model = base if request.param == "full" else attach_lora(base, Lora(lora_dropout=0.0, init_lora_weights="pissa"))
    return model.train()


def batch(windows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Windows whose labels grow longer, the last one's the longest."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 800, (windows, 4 + windows), generator=random)
    for row in range(windows):
        labels[row, 4 + row :] = IGNORE
    return {
        "input_features": torch.randn(windows, 80, 500, generator=random),
        "decoder_input_ids": labels.clamp(min=0),
        "labels": labels,
    }


def step_of(model, tokens: int) -> Callable[[dict], torch.Tensor]:
    """What the trainer does with a micro-batch of an optimiser step of so many tokens."""

    def step(part: dict) -> torch.Tensor:
        outputs = model(**{name: part[name] for name in ("input_features", "decoder_input_ids")})
        loss = token_mean_loss(outputs, part["labels"], torch.tensor(tokens))
        loss.backward()
        return loss.detach()

    return step


@contextmanager
def room_for(windows: int, model, backward: bool = False) -> Iterator[list[int]]:
    """Let more windows than that run out of memory, in the encoder or on the way back to it; yield what was tried."""
    tried = []

    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    def look(*call: object) -> None:
        heard = call[-1].last_hidden_state
        tried.append(len(heard))
        if tried[-1] > windows:
            heard.register_hook(no_room) if backward else no_room()

    hook = model.get_encoder().register_forward_hook(look)
    try:
        yield tried
    finally:
        hook.remove()


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys() != set()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("backward", [False, True], ids=["on the way forth", "halfway back"])
def test_a_step_that_ran_out_of_memory_has_the_gradients_of_one_that_did_not(model, backward, caplog):
    """Those of an earlier micro-batch included, and none of the failed tries'."""
    micro_batches = [batch(2, seed=1), batch(7, seed=2), batch(5, seed=3)]
    tokens = sum(int(one["labels"].ne(IGNORE).sum()) for one in micro_batches)
    step = step_of(model, tokens)
    losses = [step(one) for one in micro_batches]
    expected = gradients(model)
    model.zero_grad()

    parts = Parts(batch=8, accumulation=3)
    with room_for(3, model, backward) as tried:
        found = [parts.run(step, model, one) for one in micro_batches]
    assert_same(gradients(model), expected)
    torch.testing.assert_close(found, losses)
    assert tried == [2, 7, 4, 2, 2, 2, 1, 2, 2, 1], "what was learnt holds for later micro-batches"
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "batch of 7 windows is run in 4 parts" in told[1]
    assert "--per-device-train-batch-size 2 --gradient-accumulation-steps 12" in told[1]


def test_partial_gradients_of_the_first_micro_batch_are_gone(model):
    """There is nothing to restore then, only to drop."""
    one = batch(4)
    step = step_of(model, 10)
    step(one)
    expected = gradients(model)
    model.zero_grad()
    with room_for(2, model, backward=True):
        Parts(batch=4, accumulation=1).run(step, model, one)
    assert_same(gradients(model), expected)


def test_a_micro_batch_that_fits_is_run_as_it_is(model):
    """Bit for bit what it would be without us, and not copied."""
    micro_batches = [batch(3, seed=1), batch(3, seed=2)]
    step = step_of(model, 10)
    for one in micro_batches:
        step(one)
    expected = gradients(model)
    model.zero_grad()
    seen = []
    parts = Parts(batch=3, accumulation=2)
    for one in micro_batches:
        parts.run(lambda part: seen.append(part) or step(part), model, one)
    assert all(torch.equal(gradients(model)[name], expected[name]) for name in expected)
    assert [id(part) for part in seen] == [id(one) for one in micro_batches]


def test_scaled_gradients_add_up_too(mini_model):
    """On a GPU without bfloat16 the loss is scaled, and gradients of other scales must not meet."""
    model = attach_lora(load_whisper(mini_model, Precision("cpu", "none", torch.float16)), Lora(lora_dropout=0.0))
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(part: dict) -> torch.Tensor:
        with torch.autocast("cpu", torch.float16):
            outputs = model(input_features=part["input_features"], decoder_input_ids=part["decoder_input_ids"])
        loss = token_mean_loss(outputs, part["labels"], torch.tensor(40))
        scaler.scale(loss).backward()
        return loss.detach()

    def unscaled(windows: int) -> dict[str, torch.Tensor]:
        model.zero_grad()
        with room_for(windows, model, backward=True):
            parts = Parts(batch=4, accumulation=1)
            for one in (batch(2, seed=1), batch(4, seed=2)):
                parts.run(step, model, one)
        scaler.unscale_(optimizer)
        scaler.update()
        return gradients(model)

    expected, found = unscaled(4), unscaled(2)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0.02, atol=1e-3)


def test_the_same_is_drawn_as_if_nothing_had_failed(mini_model):
    """Dropout after a failed try is what it is in a run that had the smaller parts from the start."""
    model = attach_lora(load_whisper(mini_model, CPU), Lora(lora_dropout=0.5, init_lora_weights="pissa")).train()

    def run(parts: Parts, room: int) -> tuple[dict, float, float]:
        model.zero_grad()
        torch.manual_seed(3)
        np.random.seed(3)
        step = step_of(model, 30)
        with room_for(room, model, backward=True):
            parts.run(lambda part: np.random.rand() and step(part), model, batch(4))
        return gradients(model), torch.rand(1).item(), np.random.rand()

    learnt = Parts(batch=4, accumulation=1)
    found = run(learnt, 2)
    expected = run(learnt, 4)
    assert found[1:] == expected[1:]
    assert all(torch.equal(found[0][name], expected[0][name]) for name in expected[0])


def test_memory_is_free_before_the_next_try(model):
    """The error holds the frames in which it came up, and these hold the activations."""
    held = []

    def step(part: dict) -> torch.Tensor:
        assert all(tensor() is None for tensor in held)
        activations = torch.zeros(8)
        held.append(weakref.ref(activations))
        if len(part["labels"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return activations.sum()

    Parts(batch=4, accumulation=1).run(step, model, batch(4))
    assert len(held) == 1 + 1 + 4


@pytest.mark.parametrize("error", [RuntimeError(ALLOCATOR), MemoryError()])
def test_a_cpu_runs_out_of_memory_too(model, error, caplog):
    def step(part: dict) -> torch.Tensor:
        if len(part["labels"]) > 2:
            raise error
        return torch.tensor(1.0)

    assert Parts(batch=4, accumulation=1).run(step, model, batch(4)) == 2
    assert "out of memory" in caplog.text


def test_a_single_window_that_does_not_fit_ends_in_one_line(model):
    with room_for(0, model), pytest.raises(WhisperError, match=r"--gradient-checkpointing on.*--check") as raised:
        Parts(batch=4, accumulation=1).run(step_of(model, 10), model, batch(3))
    assert "\n" not in str(raised.value)


def test_one_of_several_processes_does_not_try_again(model):
    """The others would wait for it for ever."""
    with room_for(2, model) as tried, pytest.raises(WhisperError, match=r"--per-device-train-batch-size 2 --grad.* 6"):
        Parts(batch=4, accumulation=3, processes=2).run(step_of(model, 10), model, batch(4))
    assert tried == [4]


def test_other_errors_are_not_held_for_a_lack_of_memory(model):
    part = batch(4)
    part["input_features"] = part["input_features"][:, :, 1:]
    with pytest.raises(ValueError, match="mel input features"):
        Parts(batch=4, accumulation=1).run(step_of(model, 10), model, part)
    part["input_features"] = torch.zeros(4, 81, 500)
    with pytest.raises(RuntimeError, match="81 channels"):
        Parts(batch=4, accumulation=1).run(step_of(model, 10), model, part)


def test_the_preflight_sees_the_error(model):
    """It asks whether a micro-batch fits as it is."""
    with room_for(2, model), pytest.raises(torch.OutOfMemoryError):
        Whole(batch=4, accumulation=1).run(step_of(model, 10), model, batch(4))


def test_tokens_that_are_padding_in_all_of_a_part_are_not_computed():
    inputs = batch(6)
    part = cut(inputs, 1, 3)
    assert part["labels"].shape == part["decoder_input_ids"].shape == (2, 6)
    assert torch.equal(part["labels"], inputs["labels"][1:3, :6])
    assert torch.equal(part["input_features"], inputs["input_features"][1:3])


def test_a_training_that_runs_out_of_memory_ends_as_one_that_does_not(mini_bundle, tmp_path, caplog):
    """Through the trainer, which has its own hands on inputs, loss and gradients."""
    weights = []
    for room in (4, 1):
        flags = ["--bundle-dir", mini_bundle, "--output-dir", tmp_path / str(room), "--dataloader-num-workers", 0,
                 "--audio-layout", "padded", "--per-device-train-batch-size", 4, "--gradient-accumulation-steps", 2,
                 "--max-steps", 2, "--warmup-steps", 0, "--lora-dropout", 0]  # fmt: skip
        config = parse(TrainOffline, [str(flag) for flag in flags])[0]
        bundle = open_bundle(mini_bundle)
        trainer = build_trainer(config, bundle, start_run(config, bundle), CPU)
        trainer.eval_dataset = None
        trainer.callback_handler.callbacks = trainer.callback_handler.callbacks[:1]
        with room_for(room, trainer.model, backward=True):
            trainer.train()
        weights.append({name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad})
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-5)
    assert "--per-device-train-batch-size 1 --gradient-accumulation-steps 8" in caplog.text


def test_decoding_that_runs_out_of_memory_goes_on_with_fewer_clips(caplog):
    processor = load_processor(DEMO_MODEL, "Korean", "transcribe")
    options = CPU, Decoding(per_device_eval_batch_size=8, generation_max_length=12)
    transcriber = Transcriber.of(load_whisper(DEMO_MODEL, CPU), processor, *options, trimmed=True)
    random = np.random.default_rng(0)
    clips = [0.1 * random.standard_normal(1600 * n).astype(np.float32) for n in (9, 3, 5, 12, 7)]
    expected = transcriber.transcribe(clips)
    with room_for(2, transcriber.writer.model) as tried:
        assert transcriber.transcribe(clips) == expected
        assert tried == [5, 3, 2, 1, 2]
        assert transcriber.transcribe(clips) == expected
        assert max(tried[5:]) == 2, "what was learnt holds for later batches"
    assert "2 clips at once (next time --per-device-eval-batch-size 1)" in caplog.text
    with room_for(0, transcriber.writer.model), pytest.raises(torch.OutOfMemoryError):
        transcriber.transcribe(clips)
