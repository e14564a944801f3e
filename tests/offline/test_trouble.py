"""Trouble: one line for the user, and what helps to find the cause."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError

from asr.offline.checkpoints import NoRoom
from asr.offline.loss_guard import BadLoss
from asr.offline.runs import Run
from asr.offline.trouble import remove_leftovers, told_in_one_line
from utils import WhisperError


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "night")
    run.checkpoints_dir.mkdir(parents=True)
    run.update(settings={"method": "lora"})
    return run


def told(run: Run, error: Exception) -> str:
    with pytest.raises(WhisperError) as caught, told_in_one_line(run, 12_000_000):
        raise error
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    return str(caught.value)


def test_a_bad_loss_names_clips_what_to_try_and_the_best_so_far(run):
    run.keep_best(10, 0.1234)
    clips = [f"speaker-{number}" for number in range(30)]
    line = told(run, BadLoss("step 17: the loss is not a number (nan)", 17, clips, [1.5, float("nan")]))
    assert line.startswith("step 17: the loss is not a number (nan); clips of that step: speaker-0, speaker-1, ")
    assert "speaker-11 and 18 more" in line
    assert "speaker-12" not in line
    assert "--learning-rate" in line
    assert f"the best so far (step 10, CER 0.1234) is in {run.adapter_dir}" in line
    kept = json.loads((run.path / "trouble.json").read_text(encoding="utf-8"))
    assert kept["clips"] == clips
    assert (kept["step"], kept["losses"]) == (17, ["1.5", "nan"])


def test_a_bad_loss_before_the_first_evaluation(run):
    line = told(run, BadLoss("step 2: the loss is not a number (inf)", 2, ["a", "b"], [float("inf")]))
    assert "clips of that step: a, b (" in line
    assert line.endswith("nothing was evaluated before")


FULL = [
    OSError(errno.ENOSPC, "No space left on device", "/runs/metrics.jsonl"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    NoRoom("1.0 MB free, 12.0 MB needed"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_full_disk_is_known_by_whatever_it_is_called(run, error):
    line = told(run, error)
    assert line.startswith(f"the disk is full: {run.path} has ")
    assert "a checkpoint needs about 12.0 MB" in line
    assert line.endswith("--resume goes on from the beginning")


@pytest.mark.parametrize(
    "error",
    [
        "unable to write to file </torch_17_42_0>: No space left on device (28)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
    ],
)
def test_full_shared_memory_is_no_full_disk(run, error):
    """Containers have 64 MB of it, whatever their disk has."""
    assert "--dataloader-num-workers 0" in told(run, RuntimeError(error))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), RuntimeError("CUDA error: no")])
def test_other_errors_go_their_way(run, error):
    with pytest.raises(type(error), match=str(error.args[-1])), told_in_one_line(run, 1):
        raise error


def test_threads_are_silent_about_a_full_disk_alone(run, monkeypatch):
    """TensorBoard's writer would print a traceback of what the training tells anyway."""
    heard = []
    monkeypatch.setattr(threading, "excepthook", lambda given: heard.append(given.exc_value))
    hook = threading.excepthook

    def write(error: Exception) -> None:
        raise error

    errors = OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken")
    for error in errors:
        with told_in_one_line(run, 1):
            thread = threading.Thread(target=write, args=(error,))
            thread.start()
            thread.join()
    assert heard == [errors[1]]
    assert threading.excepthook is hook


def test_what_a_crash_left_is_removed_and_nothing_else(run):
    whole = [run.path / name for name in ("adapter", ".adapter.old.kept", "checkpoints/checkpoint-5")]
    halves = [run.path / name for name in (".adapter.tmp", ".adapter.old", "checkpoints/.growing/checkpoint-10")]
    for folder in (*whole, *halves):
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"1")
    (run.path / f".best.json.{os.getpid()}.tmp").write_text("{")
    (run.path / ".model.old").mkdir()
    remove_leftovers(run)
    left = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_dir()}
    assert left == {"adapter", ".adapter.old.kept", "checkpoints", "checkpoints/checkpoint-5", ".model.old"}, (
        ".model.old has no successor: it is what there is"
    )
    assert not list(run.path.glob(".best*"))
