"""Pre-flight: whether this box can do the training that the flags describe, told in one screen before it begins."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from asr.offline.checks import (
    FAIL,
    PASS,
    REQUIREMENTS,
    WARN,
    Box,
    Check,
    NotLookedAt,
    check_bundle,
    check_disk,
    check_gpu,
    check_memory,
    check_packages,
    check_quantization,
    check_time,
    check_training,
)
from asr.offline.pins import first_line
from config import TrainOffline
from utils import BundleError, UserError, WhisperError, log


def check(config: TrainOffline, requirements: Path = REQUIREMENTS, memory_limit: int | None = None) -> None:
    """Print whether this box can do the training of `config`: lines, or with `config.json` one JSON object.

    Args:
        config: of the training.
        requirements: file with the pins.
        memory_limit: bytes that may be used; None asks the device.

    Raises:
        BundleError: the bundle is damaged.
        UserError: a flag is wrong.
        WhisperError: something else failed.
    """
    box = Box(config, requirements, memory_limit)
    found = []
    with _quiet():
        for one in checks(box):
            found.append(one)
            if not config.json:
                print(as_text(one), flush=True)
    failed = [one.name for one in found if one.status == FAIL]
    if config.json:
        answer = {"ok": not failed, "checks": [asdict(one) for one in found], "estimate": box.estimate}
        print(json.dumps(answer, ensure_ascii=False, indent=2))
    for kind in (BundleError, UserError):
        for error in box.errors:
            if isinstance(error, kind):
                raise error
    if failed:
        raise WhisperError(f"the training would not do here: see {', '.join(failed)}")


def as_text(check: Check) -> str:
    """Return a check as it is shown, its advice below it."""
    lines = [f"{check.status}  {check.name:<13} {check.detail}"]
    lines += [f"{'':<19} {'->' if not i else '  '} {line}" for i, line in enumerate(check.advice.splitlines())]
    return "\n".join(lines)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the parts tell of their work, unless --debug asked for all of it."""
    level = log.level
    log.setLevel(level if level == logging.DEBUG else logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def checks(box: Box) -> Iterator[Check]:
    """Yield the checks in their order, each when it is done; what builds on a failed one is not looked at."""
    yield Check("Python", PASS, f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield _done("packages", check_packages, box)
    yield _done("bundle", check_bundle, box)
    yield _done("GPU", check_gpu, box)
    yield _done("quantization", check_quantization, box)
    # What the disk must hold follows from what is trained.
    training = _done("training", check_training, box)
    yield _done("disk", check_disk, box)
    yield training
    yield _done("memory", check_memory, box)
    yield _done("time", check_time, box)


def _done(name: str, look: Callable[[Box], Check], box: Box) -> Check:
    """Return the outcome of a check, whatever happens in it."""
    try:
        return look(box)
    except NotLookedAt as reason:
        return Check(name, WARN, f"not looked at, because of {reason}")
    except WhisperError as error:
        box.errors.append(error)
        return Check(name, FAIL, str(error))
    except Exception as error:
        log.debug("%s", name, exc_info=True)
        return Check(name, FAIL, f"{type(error).__name__}: {first_line(error)}", "--debug shows where")
