"""The pre-flight: what it says is what a training then does, and it leaves nothing behind."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from asr.offline import checks, estimate, fitting, hardware, sampling
from asr.offline.estimate import plan
from asr.offline.fitting import fit
from asr.offline.footprint import Load, Option, Shape, Variant, options_that_fit, variants
from asr.offline.pins import compare_with, read_pins
from asr.offline.precision import Precision
from asr.offline.preflight import as_text, check
from asr.shared.bundle import open_bundle
from asr.shared.cli import parse
from config import TrainOffline
from tests.conftest import ROOT, script
from utils import BundleError, UserError, WhisperError

NAMES = ["Python", "packages", "bundle", "GPU", "quantization", "disk", "training", "memory", "time"]
CPU = Precision("cpu", "none", torch.float32)
SMALL = Shape(768, 12, 12, 3072, 80, 51865)
GB = 10**9


def configuration(bundle: Path, folder: Path, *flags: object) -> TrainOffline:
    arguments = ["--check", "--json", "--bundle-dir", bundle, "--output-dir", folder / "runs",
                 "--dataloader-num-workers", 0, "--generation-max-length", 16, *flags]  # fmt: skip
    return parse(TrainOffline, [str(a) for a in arguments])[0]


@pytest.fixture
def answer(mini_bundle, tmp_path, capsys, monkeypatch):
    """Run the pre-flight in this process; give its answer and what it raised."""
    monkeypatch.setattr(fitting, "MEASURING_S", 0.0)

    def ask(*flags: object, bundle: Path = mini_bundle, **options) -> tuple[dict, WhisperError | None]:
        raised = None
        try:
            check(configuration(bundle, tmp_path, *flags), **options)
        except WhisperError as error:
            raised = error
        told = json.loads(capsys.readouterr().out)
        assert [one["name"] for one in told["checks"]] == NAMES
        assert told["ok"] == (raised is None)
        return told, raised

    return ask


def line(told: dict, name: str) -> dict:
    return next(one for one in told["checks"] if one["name"] == name)


def tree(*folders: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for folder in folders
        for path in [folder, *folder.rglob("*")]
        if "__pycache__" not in path.parts
    }


def test_a_sound_box_passes_and_nothing_is_written(mini_bundle, tmp_path):
    """As a user runs it: one screen on standard output, in order, and no file or folder made or changed."""
    (tmp_path / "here").mkdir()
    places = (mini_bundle, tmp_path / "here", ROOT / "asr")
    before = tree(*places)
    done = script(
        "train_offline.py", "--check", "--bundle-dir", mini_bundle, "--output-dir", tmp_path / "here" / "a" / "runs",
        "--cuda-visible-devices", 0, cwd=tmp_path / "here", check=True,
    )  # fmt: skip
    assert tree(*places) == before
    found = [told.split()[:2] for told in done.stdout.splitlines() if not told.startswith(" ")]
    assert [name for _, name in found] == NAMES
    cpu_only = not torch.cuda.is_available()
    assert {name for status, name in found if status != "pass"} <= ({"GPU"} if cpu_only else {"time"})
    assert len(done.stdout.splitlines()) <= 24
    assert f"{mini_bundle}" not in done.stderr


def test_the_estimate_is_what_a_training_then_does(mini_bundle, tmp_path):
    """Steps, parameters, evaluations and the size of a checkpoint, for an odd number of batches."""
    flags = ("--bundle-dir", mini_bundle, "--output-dir", tmp_path / "runs", "--per-device-train-batch-size", 5,
             "--gradient-accumulation-steps", 2, "--num-train-epochs", 2, "--generation-max-length", 16,
             "--logging-steps", 1, "--dataloader-num-workers", 0)  # fmt: skip
    told = json.loads(script("train_offline.py", "--check", "--json", *flags, check=True).stdout)["estimate"]
    done = script("train_offline.py", *flags, check=True)
    (run,) = (tmp_path / "runs").iterdir()
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    lines = [json.loads(row) for row in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert told["optimizer_steps"] == record["results"]["steps"] == 6
    assert told["evaluations"] == sum("eval_cer" in row for row in lines)
    assert f"{told['trainable_parameters']:,} of {told['parameters']:,} parameters train" in done.stderr
    assert told["audio_layout"] == record["audio_layout"]
    newest = max((run / "checkpoints").iterdir(), key=lambda folder: folder.stat().st_mtime)
    size = sum(file.stat().st_size for file in newest.iterdir())
    assert told["checkpoint_bytes"] == pytest.approx(size, rel=0.25)
    everything = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    assert everything <= told["disk_bytes"]


@pytest.mark.parametrize("flags", [("--method", "full"), ("--max-steps", 7, "--eval-steps", 3), ("--eval-steps", 2)])
def test_steps_and_parameters_of_other_settings(mini_bundle, tmp_path, flags):
    from asr.offline.measuring import passing_run
    from asr.offline.trainer import build_trainer
    from asr.offline.whisper import count_parameters

    config, bundle = configuration(mini_bundle, tmp_path, *flags), open_bundle(mini_bundle)
    with passing_run(config, bundle) as run:
        trainer = build_trainer(config, bundle, run, CPU)
        made = plan(config, bundle, run.record["audio_layout"])
        *_, steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert (made.trained, made.parameters) == count_parameters(trainer.model)
    assert made.steps == steps
    every = config.training.eval_steps or made.steps_per_epoch
    assert made.evaluations == len({step for step in range(1, steps + 1) if step % every == 0 or step == steps})


def test_windows_of_each_layout(mini_bundle, tmp_path):
    """Packed takes fewest, padded one a clip; the largest batch is never smaller than one that is drawn."""
    config, bundle = configuration(mini_bundle, tmp_path), open_bundle(mini_bundle)
    made = {layout: plan(config, bundle, layout) for layout in ("packed", "trimmed", "padded")}
    assert made["packed"].windows < made["padded"].windows == made["trimmed"].windows == 8
    assert made["trimmed"].step_frames < made["padded"].step_frames
    assert made["packed"].sampler.silent_share < made["trimmed"].sampler.silent_share < 0.5
    for one in made.values():
        largest = one.sampler.shape_of(one.largest)
        for epoch in range(3):
            one.sampler.set_epoch(epoch)
            for batch in one.sampler.epoch.batches:
                windows, frames, tokens = one.sampler.shape_of(batch)
                assert (windows, frames) <= largest[:2]
                assert epoch or tokens <= largest[2]


def test_labels_are_no_longer_than_planned(mini_bundle, tmp_path):
    """The plan counts tokens without reading a text; the collator writes no more of them."""
    from asr.offline.measuring import passing_run
    from asr.offline.trainer import build_trainer

    flags = ("--timestamp-probability", 0.5, "--per-device-train-batch-size", 16)
    config, bundle = configuration(mini_bundle, tmp_path, *flags), open_bundle(mini_bundle)
    with passing_run(config, bundle) as run:
        trainer = build_trainer(config, bundle, run, CPU)
        for batch in trainer.sampler:
            planned = trainer.sampler.shape_of(batch)
            made = trainer.data_collator([trainer.train_dataset[window] for window in batch])
            assert made["input_features"].shape[::2] == planned[:2]
            assert made["labels"].shape[1] < planned[2]


@pytest.mark.parametrize(("told", "chosen"), [("on", True), ("off", False), ("auto", False)])
def test_gradient_checkpointing_is_as_told(mini_bundle, tmp_path, told, chosen, caplog):
    """The choice is printed with its reason, kept in run.json, and reaches Trainer."""
    from asr.offline.measuring import passing_run
    from asr.offline.trainer import build_trainer

    config = configuration(mini_bundle, tmp_path, "--gradient-checkpointing", told)
    bundle = open_bundle(mini_bundle)
    with passing_run(config, bundle) as run, caplog.at_level(logging.INFO, logger="whisper"):
        trainer = build_trainer(config, bundle, run, CPU)
        assert run.record["gradient_checkpointing"] == chosen
    assert trainer.args.activation_checkpointing == chosen
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("gradient checkpointing:")]
    reason = f"--gradient-checkpointing {told}"
    if told == "auto":
        reason = "auto: at most about [0-9.]+ .B of [0-9.]+ .B"
    assert re.fullmatch(rf"gradient checkpointing: {'on' if chosen else 'off'} \({reason}\)", line)


def test_gradient_checkpointing_goes_on_by_itself_where_the_memory_is_short(mini_bundle, tmp_path, monkeypatch):
    """At nine tenths of it, for the estimate is good to about a third."""
    config, bundle = configuration(mini_bundle, tmp_path), open_bundle(mini_bundle)
    gpu = Precision("cuda", "8bit", torch.float16)
    peak = plan(config, bundle, "packed").load(config, gpu, checkpointing=False).peak()
    for limit, needed in ((int(peak / 0.89), False), (int(peak / 0.91), True)):
        monkeypatch.setattr(estimate, "usable_memory", lambda device, limit=limit: limit)
        assert estimate.checkpointing_needed(config, bundle, gpu, "packed")[0] is needed


def test_the_preflight_decides_on_checkpointing_as_a_training_does(answer, monkeypatch):
    """`auto` is tried as what it comes to, and told."""
    monkeypatch.setattr(fitting, "HOPELESS", 100.0)
    seen = []
    monkeypatch.setattr(fitting, "measure", lambda config, *parts: seen.append(config.training.gradient_checkpointing))
    told, _ = answer(memory_limit=10**7)
    assert seen == ["on"]
    assert told["estimate"]["gradient_checkpointing"]
    assert all("gradient-checkpointing" not in option["flags"] for option in told["estimate"]["alternatives"])


def test_a_batch_larger_than_the_data(answer):
    told, raised = answer("--per-device-train-batch-size", 100)
    assert raised is None
    assert told["estimate"]["steps_per_epoch"] == 1


@pytest.mark.parametrize("flags", [("--quantization", "8bit"), ("--quantization", "4bit"), ("--method", "full"),
                                   ("--gradient-checkpointing", "on", "--gradient-accumulation-steps", 3)])  # fmt: skip
def test_other_ways_to_train_are_tried_as_they_are(answer, flags):
    told, raised = answer(*flags)
    assert raised is None, [as_text(checks.Check(**one)) for one in told["checks"]]
    if "--quantization" in flags:
        assert f"{flags[1][0]}-bit layer" in line(told, "quantization")["detail"]
    figures = told["estimate"]
    assert figures["peak_measured"]
    assert 0 < figures["training_seconds"] < figures["total_seconds"]
    assert figures["peak_memory_bytes"] > 10**8


# What fails, and how


@pytest.mark.parametrize("asked", ["json", "text"])
def test_a_damaged_bundle_ends_with_3(mini_bundle, tmp_path, asked):
    bundle = tmp_path / "bundle"
    shutil.copytree(mini_bundle, bundle)
    os.truncate(bundle / "model" / "model.safetensors", 1000)
    flags = ["--json"] if asked == "json" else []
    done = script("train_offline.py", "--check", *flags, "--bundle-dir", bundle, "--output-dir", tmp_path / "runs")
    assert done.returncode == 3
    assert "model.safetensors" in done.stdout
    assert "model.safetensors" in done.stderr.splitlines()[-1]
    if asked == "json":
        told = json.loads(done.stdout)
        assert line(told, "bundle")["status"] == "fail"
        assert "not looked at" in line(told, "memory")["detail"]
        assert line(told, "packages")["status"] != "fail"


def test_no_bundle_at_all_ends_with_2(answer, tmp_path):
    _, raised = answer(bundle=tmp_path / "nothing")
    assert isinstance(raised, UserError)


def test_a_wrong_flag_ends_with_2(answer):
    told, raised = answer("--target-modules", "nothing")
    assert isinstance(raised, UserError)
    assert "--target-modules nothing" in line(told, "training")["detail"]


def test_another_version_than_pinned_is_a_warning(answer, tmp_path):
    pins = tmp_path / "pins.txt"
    pins.write_text("# comment\n\ntorch==0.0.1\ntqdm==9999  # later\n", encoding="utf-8")
    told, raised = answer(requirements=pins)
    assert raised is None
    packages = line(told, "packages")
    assert packages["status"] == "warn"
    assert "0 of 2 as pinned" in packages["detail"]
    assert "(pinned: 0.0.1)" in packages["detail"]
    assert "--install-wheels" in packages["advice"]


def test_a_missing_package_fails_and_the_rest_goes_on(answer, tmp_path):
    """One that the training does not import: all else is looked at."""
    pins = tmp_path / "pins.txt"
    pins.write_text("no-such-package==1.0\n", encoding="utf-8")
    told, raised = answer(requirements=pins)
    assert str(raised) == "the training would not do here: see packages"
    assert raised.exit_code == 1
    assert "missing: no-such-package" in line(told, "packages")["detail"]
    assert line(told, "time")["status"] == "pass"


def test_every_pin_of_ours_is_read():
    pins = read_pins(ROOT / "requirements.txt")
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert len(pins) == sum("==" in row for row in text.splitlines()) > 100
    assert compare_with({"torch": torch.__version__.partition("+")[0]}) == ([], [])


def test_without_the_heavy_packages_what_can_be_told_is_told(mini_bundle, tmp_path):
    """In an interpreter that has the standard library alone: nothing breaks, and the bundle is looked at."""
    for name in ("torch", "transformers", "datasets", "pyarrow", "numpy", "psutil", "bitsandbytes", "tqdm"):
        (tmp_path / f"{name}.py").write_text(
            f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n"
        )
    done = script("train_offline.py", "--check", "--json", "--bundle-dir", mini_bundle, "--output-dir", tmp_path / "r",
                  env={"PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert {one["name"]: one["status"] for one in told["checks"][:3]} == {
        "Python": "pass", "packages": "fail", "bundle": "pass"}  # fmt: skip
    assert "No module named 'torch'" in line(told, "packages")["detail"]
    for name in NAMES[3:]:
        assert line(told, name)["status"] == "warn"
        assert "not looked at" in line(told, name)["detail"]


def test_a_folder_that_cannot_be_written(answer, tmp_path):
    """A file in its way: permissions would not stop the administrator who may run this test."""
    (tmp_path / "runs").write_text("in the way")
    told, raised = answer()
    assert isinstance(raised, WhisperError)
    disk = line(told, "disk")
    assert disk["status"] == "fail"
    assert f"{tmp_path / 'runs'} cannot be written" in disk["detail"]
    assert "--output-dir" in disk["advice"]


def test_a_full_disk(answer, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    told, raised = answer()
    assert "see disk" in str(raised)
    assert "1.0 kB free" in line(told, "disk")["detail"]


def test_an_error_in_one_check_is_a_line_and_not_the_end(answer, monkeypatch):
    def broken(*given):
        assert given
        raise OSError("libsomething.so: cannot open shared object file\nand more")

    monkeypatch.setattr(hardware, "quantized_step", broken)
    told, raised = answer("--quantization", "8bit")
    assert "see quantization" in str(raised)
    assert line(told, "quantization")["detail"].endswith("fails: libsomething.so: cannot open shared object file")
    assert line(told, "training")["status"] == "pass"


# Memory


def test_too_little_memory_is_told_with_flags_that_do(answer):
    """Measured, and found above the limit: the limit is put between what was measured and what less would take."""
    peak = answer()[0]["estimate"]["peak_memory_bytes"]
    told, raised = answer(memory_limit=peak)
    assert "see memory" in str(raised)
    assert told["estimate"]["peak_measured"]
    assert line(told, "memory")["advice"]
    assert line(told, "time")["status"] == "pass", "it was measured after all"
    for option in told["estimate"]["alternatives"]:
        assert option["peak_bytes"] < told["estimate"]["peak_memory_bytes"]
        assert option["flags"] in line(told, "memory")["advice"]


def test_hopeless_on_a_cpu_is_not_tried(answer, monkeypatch):
    """The system would kill the process before it could tell anything."""
    monkeypatch.setattr(fitting, "measure", lambda *a: pytest.fail("tried"))
    told, raised = answer(memory_limit=10**6)
    assert "see memory" in str(raised)
    assert not told["estimate"]["peak_measured"]
    assert "not looked at, because of memory" in line(told, "time")["detail"]
    assert "more memory" in line(told, "memory")["advice"]


def test_out_of_memory_in_a_step_is_an_answer(mini_bundle, tmp_path, monkeypatch):
    config, bundle = configuration(mini_bundle, tmp_path), open_bundle(mini_bundle)
    made = plan(config, bundle, "packed")

    def runs_out(*parts):
        assert parts
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(fitting, "measure", runs_out)
    found = fit(config, bundle, CPU, made, limit=4 * GB)
    assert found.measured is None
    assert not found.fits
    assert found.peak_bytes >= found.limit_bytes
    monkeypatch.setattr(fitting, "measure", lambda *parts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(config, bundle, CPU, made, limit=4 * GB)


def test_on_a_gpu_each_option_is_tried(mini_bundle, tmp_path, monkeypatch):
    """Steps that need 1 GB a window of the batch, in 5 GB; what is tried is what is told."""
    tried = []

    def measured(config, *parts):
        windows, twice = len(parts[2].largest), config.training.gradient_checkpointing == "on"
        tried.append(windows)
        if windows > 5 and not twice:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fitting.Measured(windows * GB // (2 if twice else 1), 0, 0.5, 0.1, 0.0)

    monkeypatch.setattr(fitting, "measure", measured)
    monkeypatch.setattr(fitting, "choose_precision", lambda device, method: gpu)
    config, bundle = configuration(mini_bundle, tmp_path, "--audio-layout", "padded"), open_bundle(mini_bundle)
    gpu = Precision("cuda", "8bit", torch.float16)
    found = fit(config, bundle, gpu, plan(config, bundle, "padded"), limit=5 * GB)
    assert tried[:3] == [8, 4, 8]
    assert [(option.flags, option.measured) for option in found.options[:2]] == [
        ("--per-device-train-batch-size 4 --gradient-accumulation-steps 2", True),
        ("--gradient-checkpointing on", True),
    ]
    assert found.options[0].peak_bytes == 4 * GB
    assert found.options[0].training_seconds == 0.5 * 9


def test_a_smaller_batch_of_as_many_windows_is_not_tried(mini_bundle, tmp_path, monkeypatch):
    """Packed, half the clips twice are the same windows; on a GPU a try takes its time."""
    tried = []
    monkeypatch.setattr(fitting, "choose_precision", lambda device, method: gpu)
    monkeypatch.setattr(
        fitting, "measure", lambda config, *parts: tried.append(config.training.per_device_train_batch_size)
    )
    # As with five clips a window, which these are too long for.
    monkeypatch.setattr(sampling, "windows_a_clip", lambda *known: 0.2)
    config, bundle = configuration(mini_bundle, tmp_path, "--per-device-train-batch-size", 24), open_bundle(mini_bundle)
    gpu = Precision("cuda", "8bit", torch.float16)
    fit(config, bundle, gpu, plan(config, bundle, "packed"), limit=5 * GB)
    assert tried[:2] == [24, 4]


def loaded(config: TrainOffline, **others) -> Load:
    training = config.training
    quantization = config.device.quantization
    windows = training.per_device_train_batch_size
    full = config.lora.method == "full"
    trained = SMALL.linear + SMALL.other if full else 3_538_944
    bits = "none" if full else "8bit" if quantization == "auto" else quantization
    frames = 800 if training.audio_layout == "trimmed" else 3000
    values = {"shape": SMALL, "trained": trained, "method": config.lora.method, "quantization": bits,
              "compute_bytes": 2, "windows": windows, "frames": frames, "tokens": 60,
              "checkpointing": training.gradient_checkpointing == "on"}  # fmt: skip
    return Load(**{**values, **others})


@pytest.mark.parametrize("flags", [("--quantization", "none"), ("--quantization", "8bit"), ("--method", "full")])
def test_every_variant_needs_less_than_the_settings_as_they_are(mini_bundle, tmp_path, flags):
    """The model agrees with what each flag is for, from pure computing and from a measured peak."""
    config = configuration(mini_bundle, tmp_path, *flags)
    mine = loaded(config)
    seen = list(variants(config, mine.quantization, "packed", SMALL))
    assert seen[0].flags == "--per-device-train-batch-size 4 --gradient-accumulation-steps 2"
    assert seen[-1].flags == "run_online_setup.py --model-name-or-path openai/whisper-tiny"
    told = " | ".join(variant.flags for variant in seen)
    assert ("--method lora" in told) == ("full" in flags)
    assert ("--quantization 8bit" in told) == ("none" in flags)
    assert ("--quantization 4bit" in told) == ("full" not in flags)
    for variant in seen:
        theirs = loaded(config, shape=SMALL.resized(variant.size)) if variant.size else loaded(variant.of(config))
        assert theirs.peak() < mine.peak(), variant.flags
        assert theirs.peak_from(2 * mine.peak(), mine) < 2 * mine.peak(), variant.flags
        assert theirs.weights <= theirs.peak_from(mine.weights, mine)


def test_the_weights_of_known_models():
    """Parameters of OpenAI's sizes, to 1 %: tiny 37.8 M, small 241.7 M, large-v3 1,543.5 M."""
    for size, millions in {"tiny": 37.8, "small": 241.7, "medium": 763.9, "large-v3": 1543.5}.items():
        shape = replace(SMALL, num_mel_bins=128 if size == "large-v3" else 80).resized(size)
        assert (shape.linear + shape.other) / 1e6 == pytest.approx(millions, rel=0.01)


def test_options_are_ranked_and_only_the_largest_batch_that_fits_is_told(mini_bundle, tmp_path):
    config = configuration(mini_bundle, tmp_path, "--quantization", "none")
    mine = loaded(config)

    def options(limit: int) -> list[Option]:
        def estimate(variant: Variant) -> Option:
            theirs = loaded(config, shape=SMALL.resized(variant.size)) if variant.size else loaded(variant.of(config))
            return Option(variant.flags, theirs.peak(), False)

        found = options_that_fit(variants(config, "none", "packed", SMALL), estimate, mine.peak(), limit)
        assert all(option.peak_bytes <= limit for option in found)
        return found

    roomy, tight = options(mine.peak() * 3 // 4), options(mine.peak() // 8)
    assert roomy[0].flags == "--per-device-train-batch-size 4 --gradient-accumulation-steps 2"
    assert len([o for o in roomy if "batch-size" in o.flags]) == 1
    assert len([o for o in roomy if "openai" in o.flags]) == 1
    assert "--gradient-checkpointing on" in [o.flags for o in roomy]
    assert roomy.index(next(o for o in roomy if "openai" in o.flags)) == len(roomy) - 1
    assert [o.flags for o in tight] != []
    assert options(1000) == []


# The GPU's line, where none is: with what torch and nvidia-smi would say


ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100a", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 0), False),
        ((7, 5), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 0), True),
        ((10, 3), False),
        ((12, 1), True),
    ],
)
def test_which_gpus_a_torch_runs_on(capability, runs):
    assert hardware.has_kernels(capability, ARCHITECTURES) == runs


@pytest.fixture
def gpu_box(monkeypatch):
    """Let torch and nvidia-smi describe a box."""

    def describe(cuda: str | None, driver: str | None, capability: tuple[int, int] | None = None, free: int = 15):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(hardware, "driver_version", lambda: driver)
        monkeypatch.setattr(hardware, "why_no_cuda", lambda: "no reason")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GB, 16 * GB))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [*ARCHITECTURES, "sm_60"])

    return describe


@pytest.mark.parametrize(
    ("box", "status", "words"),
    [
        (("13.0", "580.65", (7, 5)), "pass", "Tesla T4, 16.0 GB (15.0 GB free); driver 580.65, CUDA 13.0"),
        (("13.0", "580.65", (7, 5), 3), "warn", "others are using it"),
        (("12.6", "560.35", (6, 1)), "warn", "below the 7.5"),
        (("12.6", "560.35", (7, 0)), "fail", "no code for it"),
        (("13.0", "550.54", None), "fail", "driver 550.54 is too old for torch's CUDA 13.0, which needs 580"),
        (("13.0", "580.65", None), "fail", "finds none"),
        (("13.0", None, None), "warn", "trains on the CPU"),
        ((None, "580.65", None), "fail", "built for the CPU"),
        ((None, None, None), "warn", "trains on the CPU"),
    ],
)
def test_what_is_said_of_a_gpu(gpu_box, box, status, words):
    gpu_box(*box)
    found, told, advice = hardware.gpu("auto")
    assert found == status
    assert words in told
    assert bool(advice) == (status != "pass")


def test_a_gpu_that_does_not_do_is_not_replaced_by_the_cpu(answer, gpu_box):
    """Nobody on a GPU box wants an hour of large-v3 on the CPU for an answer."""
    gpu_box(None, "580.65")
    told, raised = answer()
    assert "see GPU" in str(raised)
    assert "not looked at" in line(told, "memory")["detail"]
    assert line(told, "training")["status"] == "pass"


def test_what_counts_as_out_of_memory():
    for error in (torch.OutOfMemoryError("x"), RuntimeError("CUDA error: out of memory"), MemoryError(),
                  RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
                  RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")):  # fmt: skip
        assert hardware.is_out_of_memory(error)
    for error in (RuntimeError("shapes do not match"), ValueError("out of memory")):
        assert not hardware.is_out_of_memory(error)


def test_a_bundle_error_outranks_what_else_failed(answer, mini_bundle, tmp_path):
    """A machine that reads the exit code learns what to copy again."""
    broken = tmp_path / "broken"
    shutil.copytree(mini_bundle, broken)
    (broken / "manifest.sha256").unlink()
    pins = tmp_path / "pins.txt"
    pins.write_text("no-such-package==1.0\n", encoding="utf-8")
    _, raised = answer(bundle=broken, requirements=pins)
    assert isinstance(raised, BundleError)
