"""Several processes: they train what one would, speak and write as one, and end as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

from asr.offline.ending import LOST
from asr.offline.precision import Precision
from asr.offline.runs import start_run
from asr.offline.trainer import build_trainer, train
from asr.shared.bundle import open_bundle
from asr.shared.cli import parse
from config import TrainOffline
from tests.conftest import ROOT

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2)
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_machines", 1, "--num_processes", 2,
              "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip
LAYOUTS = ("padded", "packed")
RUNS = (*LAYOUTS, "dropout")
CPU = Precision("cpu", "none", torch.float32)
# 24 clips in steps of 16: the second step of each epoch is a short one, and the third checkpoint lies between two.
STEPS = ("--max-steps", 6, "--save-steps", 3, "--eval-steps", 2, "--warmup-steps", 0, "--logging-steps", 1)
FEW = ("--generation-max-length", 16, "--dataloader-num-workers", 0, "--gradient-accumulation-steps", 2)
# Dropout and the choice of windows with timestamps depend on who has which clip.
SAME = ("--lora-dropout", 0, "--timestamp-probability", 0)
LAST = "checkpoints/checkpoint-6"

SEVERAL_RUNS = """
import json, sys
import utils
from asr.offline.ranks import one_voice, together
from asr.shared.cli import parse
from config import TrainOffline
from train_offline import fine_tune

utils.go_offline()
utils.set_up_logging()
with one_voice(), together() as ranks:
    assert ranks.any(ranks.rank == 1) and not ranks.any(ranks.rank == 2)
    for number in range(4):
        assert ranks.gather(list(ranks.share(number))) == list(range(number)), number
    for flags in json.loads(sys.argv[1]):
        fine_tune(parse(TrainOffline, flags)[0], ranks)
"""


def flags(bundle: Path, folder: Path, batch: int, name: str) -> list[str]:
    """Return the flags of a run that is named after its layout, or of the one whose random numbers matter."""
    where = ("--bundle-dir", bundle, "--output-dir", folder, "--run-name", name)
    kind = ("--audio-layout", name, *SAME) if name in LAYOUTS else ()
    return [str(flag) for flag in (*where, "--per-device-train-batch-size", batch, *STEPS, *FEW, *kind)]


def launch(launcher: tuple[object, ...], program: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT),
                   "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, launcher), str(program), *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip


def finished(launched: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code and what was said."""
    said, told = launched.communicate(timeout=300)
    assert said == ""
    return launched.returncode, told


@pytest.fixture(scope="module")
def one(mini_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process."""
    folder = tmp_path_factory.mktemp("one")
    bundle = open_bundle(mini_bundle)
    for layout in LAYOUTS:
        config = parse(TrainOffline, flags(mini_bundle, folder, 8, layout))[0]
        run = start_run(config, bundle)
        train(build_trainer(config, bundle, run, CPU), run, bundle.base_name)
    return folder


@pytest.fixture(scope="module")
def two(mini_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Runs of two processes, each with half the batch, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    program = folder / "several_runs.py"
    program.write_text(SEVERAL_RUNS, encoding="utf-8")
    each = json.dumps([flags(mini_bundle, folder, 4, name) for name in RUNS])
    code, told = finished(launch(TORCHRUN, program, each))
    assert code == 0, told[-2000:]
    return folder, told


def logged(run: Path, name: str) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line[name] for line in map(json.loads, lines) if name in line]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_train_what_one_does(one: Path, two: tuple[Path, str], layout: str):
    """The mean over the tokens of a step, whichever process had them: one loss, one gradient, one adapter."""
    alone, both = one / layout, two[0] / layout
    for name in ("loss", "grad_norm"):
        assert len(logged(both, name)) == 6
        assert logged(both, name) == pytest.approx(logged(alone, name), rel=1e-5), name
    weights = [load_file(run / LAST / "adapter_model.safetensors") for run in (alone, both)]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-5)


def test_the_clips_are_decoded_by_both_and_judged_together(one: Path, two: tuple[Path, str]):
    for layout in LAYOUTS:
        for name in ("eval_cer", "eval_wer"):
            rates = logged(two[0] / layout, name)
            assert len(rates) == 3
            assert rates == pytest.approx(logged(one / layout, name), abs=0.05)


def test_two_processes_speak_and_write_as_one(two: tuple[Path, str]):
    folder, told = two
    for line in ("(every file verified)", "device: CPU", "run: ", "done in "):
        assert told.count(line) == len(RUNS), line
    for name in RUNS:
        run = folder / name
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        assert (record["status"], record["processes"]) == ("finished", 2)
        assert len(list((run / "tensorboard").iterdir())) == 1
        assert len(logged(run, "loss")) == 6


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_draws_its_own_random_numbers(two: tuple[Path, str], rank: int):
    """What one drops of its clips, the other is not to drop of others; a checkpoint keeps the numbers of both."""
    with safe_globals():
        drawn = torch.load(two[0] / "dropout" / LAST / f"rng_state_{rank}.pth", weights_only=True)["cpu"]
    assert torch.Generator().set_state(drawn).initial_seed() == TrainOffline().run.seed + rank


def test_a_killed_process_ends_the_job_and_the_resumed_one_ends_with_the_same_bytes(
    mini_bundle: Path, two: tuple[Path, str], tmp_path: Path
):
    """The launcher's own report stands around it; of ours there is one line, and no traceback."""
    script, command = ROOT / "train_offline.py", flags(mini_bundle, tmp_path, 4, "dropout")
    job = launch(TORCHRUN, script, *command)
    wait_for(tmp_path / "dropout" / "checkpoints" / "checkpoint-3" / "complete.json", job)
    process_of(job, rank=1).send_signal(signal.SIGKILL)
    code, told = finished(job)
    assert code != 0
    assert [line for line in told.splitlines() if line.startswith("error:")] == [f"error: {LOST}"]
    assert f'"{script}"' not in told, "a traceback of ours"

    code, told = finished(launch(ACCELERATE, script, *command, "--resume"))
    assert code == 0, told[-2000:]
    assert told.count("resuming from ") == 1
    whole, killed = two[0] / "dropout", tmp_path / "dropout"
    files = [run / LAST / "adapter_model.safetensors" for run in (whole, killed)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert logged(whole, "loss") == logged(killed, "loss")


def wait_for(sign: Path, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not sign.exists():
        assert job.poll() is None, "the job ended before it could be harmed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def process_of(job: subprocess.Popen[str], rank: int) -> psutil.Process:
    return next(child for child in psutil.Process(job.pid).children() if child.environ().get("RANK") == str(rank))
