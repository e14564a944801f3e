"""The whole flow as a user runs it: scripts in processes of their own, with real files between them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from asr.shared.bundle import open_bundle
from tests.conftest import DEMO_CORPUS, ROOT, script
from tests.pages import served_page

SHORT = ("--max-steps", 4, "--warmup-steps", 0, "--generation-max-length", 24)
STRACE = shutil.which("strace")
CAN_UNSHARE = bool(shutil.which("unshare")) and not subprocess.run(["unshare", "-rn", "true"]).returncode


@pytest.fixture(scope="module")
def moved_bundle(mini_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bundle after the crossing: at another path, with spaces and Korean in it, and read-only."""
    bundle = tmp_path_factory.mktemp("옮긴 곳") / "내 묶음"
    shutil.copytree(mini_bundle, bundle)
    for path in [bundle, *bundle.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = snapshot(bundle)
    yield bundle
    assert snapshot(bundle) == before, "one of the scripts wrote into the bundle"


@pytest.fixture(scope="module")
def runs(moved_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs folder with one finished run, trained on the moved bundle and then moved itself."""
    made = tmp_path_factory.mktemp("made") / "runs"
    script("train_offline.py", "--bundle-dir", moved_bundle, "--output-dir", made, *SHORT, check=True)
    moved = tmp_path_factory.mktemp("moved") / "runs"
    shutil.move(made, moved)
    return moved


@pytest.fixture
def offline(moved_bundle: Path, runs: Path) -> tuple[object, ...]:
    return ("--bundle-dir", moved_bundle, "--output-dir", runs, "--generation-max-length", 24)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_run_folder_explains_itself(runs: Path):
    (run,) = runs.glob("[!.]*")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished"
    assert record["results"]["steps"] == 4
    assert set(record["versions"]) >= {"python", "torch", "transformers", "peft"}
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert list((run / "tensorboard").glob("events.*"))
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in steps if "eval_cer" in line] == [3, 4], "each epoch and the end"
    assert record["precision"] == {"device": "CPU", "quantization": "none", "compute_type": "float32"}
    assert "run_name" not in (run / "config.toml").read_text(encoding="utf-8")
    again = script("train_offline.py", "--config", run / "config.toml", "--print-config", check=True)
    assert "max_steps = 4" in again.stdout


def test_evaluation_compares_base_and_tuned(offline, runs: Path):
    done = script("evaluate_model.py", *offline, check=True)
    (run,) = runs.glob("[!.]*")
    figures = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert figures["utterances"] == 4
    for name in ("base", "tuned"):
        assert set(figures[name]) == {"cer", "cer_with_spaces", "wer"}
        assert f"{figures[name]['cer']:.4f}" in done.stdout
    table = (run / "evaluation" / "utterances.csv").read_bytes()
    assert table.startswith(b"\xef\xbb\xbf")
    assert len(table.decode("utf-8-sig").splitlines()) == 5
    assert run.name in done.stderr


def test_inference_prints_text_alone(offline):
    clip = next((DEMO_CORPUS / "clips").glob("*test_0000.mp3"))
    done = script("inference.py", clip, *offline, check=True)
    assert done.stdout.endswith("\n")
    assert len(done.stdout.splitlines()) == 1
    assert "newest finished" in done.stderr


def test_a_bad_file_does_not_stop_the_others(offline, tmp_path):
    clips = sorted((DEMO_CORPUS / "clips").glob("*test_000[01].mp3"))
    (tmp_path / "bad.wav").write_bytes(b"not audio")
    done = script("inference.py", clips[0], tmp_path / "bad.wav", clips[1], *offline)
    assert done.returncode == 2
    assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == [str(clip) for clip in clips]
    assert "bad.wav: unreadable audio: the file cannot be decoded" in done.stderr


def test_plain_libraries_load_what_we_wrote(runs: Path, moved_bundle: Path, tmp_path):
    """transformers and peft alone, from another folder: none of our code is on the path."""
    (run,) = runs.glob("[!.]*")
    program = f"""
import sys, torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from peft import PeftModel
from datasets import load_from_disk
base = WhisperForConditionalGeneration.from_pretrained({str(moved_bundle / "model")!r})
model = PeftModel.from_pretrained(base, {str(run / "adapter")!r})
processor = WhisperProcessor.from_pretrained({str(moved_bundle / "model")!r})
ids = model.generate(input_features=torch.zeros(1, 80, 500), language="ko", task="transcribe", max_new_tokens=5)
assert processor.tokenizer("가").input_ids
row = load_from_disk({str(moved_bundle / "data")!r})["train"][0]
assert row["audio"]["bytes"][:4] == b"fLaC" and row["text"] and row["labels"]
assert not any(name == "asr" or name.startswith("asr.") for name in sys.modules)
print("loaded", tuple(ids.shape)[0])
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )
    assert done.stdout.strip() == "loaded 1", done.stderr


@pytest.mark.parametrize(
    ("flags", "produced"),
    [
        (("--quantization", "8bit"), "adapter/adapter_model.safetensors"),
        (("--quantization", "4bit"), "adapter/adapter_model.safetensors"),
        (("--method", "full"), "model/model.safetensors"),
        (("--audio-layout", "padded", "--gradient-checkpointing", "on"), "adapter/adapter_model.safetensors"),
        (("--audio-layout", "trimmed"), "adapter/adapter_model.safetensors"),
    ],
)
def test_other_ways_to_train(moved_bundle: Path, tmp_path, flags, produced):
    where = ("--bundle-dir", moved_bundle, "--output-dir", tmp_path, "--generation-max-length", 24)
    done = script("train_offline.py", *where, *SHORT[:4], *flags, check=True)
    (run,) = tmp_path.glob("[!.]*")
    assert (run / produced).is_file()
    if "full" in flags:
        assert "peak learning rate 1e-05" in done.stderr
        assert script("evaluate_model.py", *where, check=True).stdout.startswith("test: 4 utterances")


def test_killed_and_resumed_ends_bit_identical(moved_bundle: Path, tmp_path):
    """kill -9 between two checkpoints, the newest of them incomplete; --resume ends with the same bytes."""
    where = ("--bundle-dir", moved_bundle, "--output-dir", tmp_path)
    pace = ("--max-steps", 14, "--warmup-steps", 2, "--save-steps", 2, "--eval-steps", 7, "--generation-max-length", 16)
    pace += ("--logging-steps", 2)
    script("train_offline.py", *where, *pace, "--run-name", "whole", check=True)

    arguments = ("train_offline.py", *where, *pace, "--run-name", "killed", "--save-total-limit", 5)
    kill_when(arguments, tmp_path / "killed" / "checkpoints" / "checkpoint-10" / "complete.json")
    (tmp_path / "killed" / "checkpoints" / "checkpoint-10" / "optimizer.pt").write_bytes(b"cut short")
    done = script(*arguments, "--resume", check=True)

    assert "checkpoint-10 is not complete" in done.stderr
    assert re.search(r"resuming from .*checkpoint-8\n", done.stderr), "in the middle of an epoch of 3 steps"
    for weights in ("adapter", "checkpoints/checkpoint-14"):
        files = [tmp_path / run / weights / "adapter_model.safetensors" for run in ("whole", "killed")]
        assert files[0].read_bytes() == files[1].read_bytes()
    lines = [[json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
             for run in ("whole", "killed")]  # fmt: skip
    losses = [[(line["step"], line["loss"]) for line in each if "loss" in line] for each in lines]
    assert losses[0] == losses[1]


def kill_when(arguments: tuple, sign: Path) -> None:
    """Start a script and kill -9 it as soon as a file is there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / arguments[0]), *map(str, arguments[1:])], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not sign.exists():
        assert process.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()


@pytest.mark.parametrize("damage", ["flip", "missing", "unfinished", "cut"])
def test_damaged_bundle_stops_training(mini_bundle: Path, tmp_path, damage):
    bundle = tmp_path / "bundle"
    shutil.copytree(mini_bundle, bundle)
    victim = bundle / "data" / "train" / "data-00000.arrow"
    if damage == "flip":
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "missing":
        victim = bundle / "model" / "tokenizer.json"
        victim.unlink()
    elif damage == "unfinished":
        victim = bundle / "manifest.json"
        victim.unlink()
    else:
        os.truncate(victim, 1000)
    done = script("train_offline.py", "--bundle-dir", bundle, "--output-dir", tmp_path / "runs")
    assert done.returncode == 3
    assert len(done.stderr.strip().splitlines()) == 1
    assert str(victim) in done.stderr
    assert not (tmp_path / "runs").exists()


def test_setup_that_fails_leaves_no_manifest(mini_bundle: Path, tmp_path, mini_model: Path, mini_release: Path):
    """A second setup that breaks off must not leave the first one's seal on a half-changed bundle."""
    bundle = tmp_path / "bundle"
    shutil.copytree(mini_bundle, bundle)
    shutil.copytree(mini_release, tmp_path / "release")
    for clip in (tmp_path / "release" / "ko" / "clips").iterdir():
        clip.write_bytes(b"")
    done = script("run_online_setup.py", "--model-name-or-path", mini_model, "--common-voice", tmp_path / "release",
                  "--bundle-dir", bundle)  # fmt: skip
    assert done.returncode == 2
    assert "no training clip is left of 32 rows" in done.stderr
    assert script("train_offline.py", "--bundle-dir", bundle, "--output-dir", tmp_path / "runs").returncode == 3


def test_setup_that_cannot_begin_leaves_the_bundle_as_it_was(mini_bundle: Path, tmp_path, mini_release: Path):
    bundle = tmp_path / "bundle"
    shutil.copytree(mini_bundle, bundle)
    shutil.copytree(mini_release, tmp_path / "release")
    (tmp_path / "release" / "ko" / "dev.tsv").unlink()
    done = script("run_online_setup.py", "--common-voice", tmp_path / "release", "--bundle-dir", bundle)
    assert done.returncode == 2
    assert "dev.tsv is missing" in done.stderr
    assert open_bundle(bundle)


@pytest.mark.skipif(STRACE is None, reason="needs strace")
def test_no_address_but_loopback_is_contacted(moved_bundle: Path, tmp_path):
    """Training, evaluation, transcription and the page, as the kernel saw them.

    All but the page run in a network namespace with no interface that is up, where the system can make one.
    """
    where = ("--bundle-dir", moved_bundle, "--output-dir", tmp_path / "runs", "--generation-max-length", 24)
    clip = next((DEMO_CORPUS / "clips").glob("*test_0000.mp3"))
    trace = tmp_path / "trace"
    prefix = (str(STRACE), "-f", "-e", "trace=connect,sendto,sendmsg", "-A", "-o", str(trace))
    cut_off = (*(("unshare", "-rn") if CAN_UNSHARE else ()), *prefix)
    script("train_offline.py", *where, *SHORT[:4], check=True, prefix=cut_off)
    script("evaluate_model.py", *where, check=True, prefix=cut_off)
    script("inference.py", clip, *where, check=True, prefix=cut_off)
    (tmp_path / "page").mkdir()
    use_page(tmp_path / "page", where, clip, prefix)
    calls = trace.read_text(encoding="utf-8", errors="replace")
    assert "sin_port" in calls, "the page's own check of its port is seen, so the trace works"
    addresses = set(re.findall(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"', calls))
    assert {four or six for four, six in addresses} <= {"127.0.0.1", "::1"}


def use_page(folder: Path, where: tuple, clip: Path, prefix: tuple[str, ...]) -> None:
    """Serve the page, read it, transcribe a clip through it, and stop it."""
    from gradio_client import Client, handle_file

    with served_page(folder, *where, prefix=prefix) as page:
        with urllib.request.urlopen(page.address) as opened:
            html = opened.read().decode()
        outside = set(re.findall(r'(?:src|href)="(https?://[^"]+)"', html))
        assert not {url for url in outside if "127.0.0.1" not in url}, outside
        text = Client(page.address, verbose=False).predict(handle_file(clip), api_name="/transcribe")
        assert isinstance(text, str)
