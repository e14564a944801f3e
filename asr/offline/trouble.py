"""Trouble: what is kept and told where a training cannot go on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC

from safetensors import SafetensorError

from asr.offline.checkpoints import NoRoom, newest_complete
from asr.offline.loss_guard import BadLoss
from asr.offline.runs import Run
from asr.shared.meter import in_bytes
from utils import WhisperError, write_json

FILE = "trouble.json"
MOST_NAMED = 12
# How safetensors and torch say that a disk is full; torch does not say why it could not write.
FULL = ("No space left", "os error 28", "quota exceeded", "os error 122", "PytorchStreamWriter", "unexpected pos")
# How torch says that the loader's workers have no room for what they hand over.
SHARED = ("shared memory", "</torch_")


@contextmanager
def told_in_one_line(run: Run, needed: int) -> Iterator[None]:
    """Turn what ends a training inside the block into one line, and keep what helps to find the cause.

    Args:
        run: in training.
        needed: bytes that a checkpoint takes.
    """
    hook = threading.excepthook
    # TensorBoard writes from a thread; the training hears of the same error with the next line for it.
    threading.excepthook = lambda given: None if given.exc_value and is_disk_full(given.exc_value) else hook(given)
    try:
        yield
    except BadLoss as error:
        raise WhisperError(_bad_loss(run, error)) from None
    except (OSError, RuntimeError, SafetensorError, NoRoom) as error:
        if any(text in str(error) for text in SHARED):
            raise WhisperError(
                "the shared memory (/dev/shm) is full: give the container more of it (docker --shm-size), or "
                "--dataloader-num-workers 0; the same command with --resume goes on"
            ) from None
        if not is_disk_full(error):
            raise
        raise WhisperError(_disk_full(run, needed)) from None
    finally:
        threading.excepthook = hook


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` means that nothing more could be written."""
    number = error.errno if isinstance(error, OSError) else None
    return isinstance(error, NoRoom) or number in (ENOSPC, EDQUOT) or any(text in str(error) for text in FULL)


def remove_leftovers(run: Run) -> None:
    """Remove what a crash left half-written; the caller holds the run's lock."""
    halves = [*run.checkpoints_dir.glob(".*"), *run.path.glob(".*.tmp")]
    # Put aside for a moment, its successor has taken its place.
    halves += [path for path in run.path.glob(".*.old") if (run.path / path.name[1:-4]).exists()]
    for path in halves:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _disk_full(run: Run, needed: int) -> str:
    free = shutil.disk_usage(run.path).free
    checkpoint = newest_complete(run.checkpoints_dir)
    return (
        f"the disk is full: {run.path} has {in_bytes(free)} free, and a checkpoint needs about {in_bytes(needed)}; "
        "make room, then the same command with --resume goes on from "
        f"{checkpoint.name if checkpoint else 'the beginning'}"
    )


def _bad_loss(run: Run, error: BadLoss) -> str:
    file = run.path / FILE
    losses = [str(loss) for loss in error.losses]
    write_json(file, {"step": error.step, "trouble": str(error), "losses": losses, "clips": error.clips})
    named = ", ".join(error.clips[:MOST_NAMED])
    more = len(error.clips) - MOST_NAMED
    kept, best = "nothing was evaluated before", run.best
    if best:
        kept = f"the best so far (step {best['step']}, CER {best['cer']:.4f}) is in {run.weights_dir}"
    return (
        f"{error}; clips of that step: {named}{f' and {more} more' if more > 0 else ''} ({file} lists them); look at "
        f"them, or start a new run with a lower --learning-rate, more --warmup-steps or --quantization none; {kept}"
    )
