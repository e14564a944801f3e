"""What a night in a machine room can do to a training: killed, asked to end, a full disk, the same run twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk

from asr.offline.interruption import SAME_KEY_S
from tests.conftest import CLIPS, ROOT
from tests.sessions import Sessions, wait_until

SEED = 20
PACE = ("--max-steps", 10, "--warmup-steps", 2, "--save-steps", 2, "--eval-steps", 4, "--logging-steps", 3)
SMALL = ("--generation-max-length", 8, "--dataloader-num-workers", 0)

CAN_MOUNT = shutil.which("unshare") and not subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sessions are forked and killed")


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    helper = Sessions(tmp_path_factory.mktemp("sessions"))
    yield helper
    helper.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults") / "runs"


@pytest.fixture(scope="module")
def flags(mini_bundle: Path, runs: Path) -> tuple[object, ...]:
    return ("--bundle-dir", mini_bundle, "--output-dir", runs, *PACE, *SMALL)


@pytest.fixture(scope="module")
def uses(sessions: Sessions, flags: tuple, runs: Path) -> list[str]:
    """Train without a fault as the run "whole", and return which files the training used, in order."""
    trace = runs.parent / "uses.json"
    assert sessions.run(*flags, "--run-name", "whole", trace=str(trace)).code == 0
    return json.loads(trace.read_text())


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, runs: Path) -> dict[str, Any]:
    """What that training left."""
    request.getfixturevalue("uses")
    return outcome(runs / "whole")


def outcome(run: Path) -> dict[str, Any]:
    """Return all that a training leaves, but for what tells the time."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    newest = max(int(path.name[11:]) for path in (run / "checkpoints").iterdir())
    return {
        "status": record["status"],
        "results": record["results"] | {"seconds": None},
        "adapter": (run / "adapter" / "adapter_model.safetensors").read_bytes(),
        "last weights": (run / "checkpoints" / f"checkpoint-{newest}" / "adapter_model.safetensors").read_bytes(),
        "best.json": json.loads((run / "best.json").read_text(encoding="utf-8")),
        "metrics.jsonl": [{k: v for k, v in line.items() if k != "eval_runtime"} for line in lines],
        "folders": sorted(path.name for path in [*run.iterdir(), *(run / "checkpoints").iterdir()]),
    }


def test_killed_anywhere_and_resumed_ends_bit_identical(sessions, flags, runs, uses, whole):
    """kill -9 at 20 moments drawn by lot: 9 in the midst of a checkpoint's writing, 5 at another file, 6 in between."""
    trace = runs.parent / "calls.json"
    assert sessions.run(*flags, "--run-name", "counted", kill_by="calls", trace=str(trace)).code == 0
    (calls,) = map(int, json.loads(trace.read_text()))
    lot = random.Random(SEED)
    inside = [number for number, use in enumerate(uses, start=1) if "/.growing/" in use]
    others = [number for number, use in enumerate(uses, start=1) if "/.growing/" not in use]
    moments = [(number, "files") for number in (*lot.sample(inside, 9), *lot.sample(others, 5))]
    moments += [(number, "calls") for number in lot.sample(range(1, int(0.95 * calls)), 6)]
    caught = 0
    for number, (moment, kind) in enumerate(moments):
        name = ("--run-name", f"killed-{number}")
        killed = sessions.run(*flags, *name, kill_at=moment, kill_by=kind)
        assert killed.code == -signal.SIGKILL, killed.told
        caught += any((runs / name[1] / "checkpoints").glob(".growing/*"))
        resumed = sessions.run(*flags, *name, "--resume")
        assert resumed.code == 0, resumed.told
        assert outcome(runs / name[1]) == whole, (moment, kind)
    assert caught >= 5, "some were killed inside a checkpoint's writing"


# Asked to end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_asked_to_end_in_an_evaluation_the_resumed_run_begins_with_it(sessions, flags, runs, whole, number):
    """Decoding stops at the next batch, and the step is saved; broken off again, the evaluation is still owed."""
    arguments = (*flags, "--run-name", number.name, "--per-device-eval-batch-size", 1)
    for resume, batch in ((), 2), (("--resume",), 3):
        session = sessions.run(*arguments, *resume, raise_in_batch=(batch, number))
        assert session.code == 75, session.told
        assert f"error: interrupted at step 4 by {number.name}" in session.told
        assert "Traceback" not in session.told
        assert [line["step"] for line in metrics(runs / number.name)] == [3]
    assert sessions.run(*arguments, "--resume").code == 0
    assert outcome(runs / number.name) == whole


def test_asked_to_end_in_the_last_evaluation_the_resumed_run_does_it(sessions, flags, runs, whole):
    """There is no step left to train, and Trainer alone would run one more."""
    arguments = (*flags, "--run-name", "last", "--per-device-eval-batch-size", 1)
    session = sessions.run(*arguments, raise_in_batch=(2 * CLIPS["dev"] + 2, signal.SIGTERM))
    assert session.code == 75, session.told
    assert "error: interrupted at step 10 " in session.told
    assert sessions.run(*arguments, "--resume").code == 0
    assert outcome(runs / "last") == whole


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("pace", [(), ("--save-steps", 0)], ids=["every so many steps", "each epoch"])
def test_asked_to_end_in_a_step_it_is_finished_and_saved(sessions, flags, runs, whole, pace):
    """While a checkpoint is written, so that the next step to end is known; resumed at another pace, that holds."""
    name = ("--run-name", f"asked{''.join(pace[:1])}")
    session = sessions.run(*flags, *name, *pace, raise_at=(r"checkpoint-[23]/\.complete", signal.SIGINT))
    assert session.code == 75, session.told
    step = 4 if pace else 3
    assert session.told.rstrip().splitlines()[-1].startswith(f"error: interrupted at step {step} by SIGINT")
    resumed = sessions.run(*flags, *name, "--resume")
    assert f"checkpoint-{step}\n" in resumed.told
    assert outcome(runs / name[1]) == whole


def newest(run: Path) -> int:
    return max(int(path.name[11:]) for path in (run / "checkpoints").glob("checkpoint-*"))


def test_a_second_ctrl_c_ends_it_at_once(sessions, flags, runs):
    """In the midst of a batch that is decoded, rather than after it; as safe as kill -9."""
    slow = (*flags, "--generation-max-length", 448, "--eval-steps", 10, "--run-name")
    assert sessions.run(*slow, "slow").code == 0
    session = sessions.start(*slow, "twice", raise_in_batch=(1, signal.SIGINT, 3.0))
    wait_until(lambda: "SIGINT: stopping" in session.told)
    time.sleep(1.1 * SAME_KEY_S)
    session.send(signal.SIGINT)
    assert session.wait() == 75
    assert session.told.rstrip().splitlines()[-1].startswith("error: stopped at once")
    assert "Traceback" not in session.told
    assert newest(runs / "twice") == 8
    assert sessions.run(*slow, "twice", "--resume").code == 0
    assert outcome(runs / "twice") == outcome(runs / "slow")


def in_its_own_group(arguments: tuple, log: Path, **options: Any) -> subprocess.Popen:
    """Start the script as a terminal or a job scheduler does, with its loader's workers in one group of processes."""
    with open(log, "wb") as output:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train_offline.py"), *map(str, arguments)], stdout=output, stderr=output,
            start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **options,
        )  # fmt: skip


LONGER = ("--generation-max-length", 40)


@pytest.fixture(scope="module")
def evaluated_longer(sessions: Sessions, flags: tuple, runs: Path) -> dict[str, Any]:
    """What a training leaves whose evaluations take long enough to be broken off from outside."""
    assert sessions.run(*flags, *LONGER, "--run-name", "longer").code == 0
    return outcome(runs / "longer")


@pytest.mark.parametrize(("number", "when"), [(signal.SIGTERM, "in a step"), (signal.SIGINT, "in an evaluation")])
def test_the_script_and_all_its_workers_are_asked_at_once(
    sessions, flags, runs, tmp_path, evaluated_longer, number, when
):
    """Ctrl-C and job schedulers ask the whole group: workers that died of it would take the step with them."""
    name = f"script-{number.name}"
    arguments = (*flags, *LONGER, "--run-name", name, "--dataloader-num-workers", 2, "--per-device-eval-batch-size", 1)
    script = in_its_own_group(arguments, tmp_path / "log")
    told = (tmp_path / "log").read_text
    saved = runs / name / "checkpoints" / "checkpoint-2"
    wait_until(saved.exists if when == "in a step" else lambda: "validating" in told(), told)
    os.killpg(script.pid, number)
    assert script.wait() == 75, told()
    assert (
        told()
        .rstrip()
        .splitlines()[-1]
        .startswith(f"error: interrupted at step {newest(runs / name)} by {number.name}")
    )
    assert "Traceback" not in told()
    assert sessions.run(*arguments, "--resume").code == 0
    assert outcome(runs / name) == evaluated_longer


def test_a_closed_terminal_asks_for_the_end(sessions, flags, runs, evaluated_longer):
    """The system sends SIGHUP, and nothing can be written to the terminal any more."""
    import pty
    import termios

    arguments = (*flags, *LONGER, "--run-name", "terminal", "--per-device-eval-batch-size", 1)
    pid, terminal = pty.fork()
    if not pid:
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, str(ROOT / "train_offline.py"), *map(str, arguments)])
    termios.tcsetwinsize(terminal, (25, 100))
    told = b""
    while b"validating" not in told:
        told += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    assert newest(runs / "terminal") == 4
    assert sessions.run(*arguments, "--resume").code == 0
    assert outcome(runs / "terminal") == evaluated_longer


# The training itself


def test_a_loss_that_is_no_number_ends_it_with_what_helps(sessions, flags, runs):
    session = sessions.run(*flags, "--run-name", "wild", "--learning-rate", 1e30, "--warmup-steps", 0)
    assert session.code == 1, session.told
    last = session.told.rstrip().splitlines()[-1]
    trouble = json.loads((runs / "wild" / "trouble.json").read_text(encoding="utf-8"))
    assert last.startswith(f"error: step {trouble['step']}: the loss is not a number (nan); clips of that step: ")
    assert len(trouble["clips"]) == 8
    assert set(trouble["clips"]) <= set(load_from_disk(flags[1] / "data")["train"]["source_id"])
    assert "Traceback" not in session.told


def test_early_stopping_ends_it_as_if_it_were_done(sessions, flags, runs):
    """The CER of the mini model never gets better; resumed, it has nothing left to train."""
    arguments = (*flags, "--run-name", "early", "--early-stopping-patience", 1)
    session = sessions.run(*arguments, raise_at=(r"early/\.run.json.*tmp", signal.SIGKILL))
    assert session.code == -signal.SIGKILL
    assert "stopping early: no better CER" in session.told
    assert sessions.run(*arguments, "--resume").code == 0
    record = json.loads((runs / "early" / "run.json").read_text(encoding="utf-8"))
    assert (record["results"]["steps"], record["results"]["best_step"]) == (8, 4)


# The same run twice


def test_a_run_that_is_in_training_is_refused_to_others(sessions, flags, runs, whole):
    session = sessions.start(*flags, "--run-name", "shared", raise_at=(r"checkpoint-4/\.complete", signal.SIGSTOP))
    session.wait_until_stopped()
    other = sessions.run(*flags, "--run-name", "shared", "--resume")
    assert other.code == 2
    assert other.told.splitlines()[-1].startswith(f"error: {runs / 'shared'} is in use by process {session.pid} on ")
    session.send(signal.SIGKILL)
    session.wait()
    assert sessions.run(*flags, "--run-name", "shared", "--resume").code == 0
    assert outcome(runs / "shared") == whole


# No room


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sessions, Path, Path]]:
    """Sessions with a disk of 16 MB of their own, its path as they see it, and as the tests do."""
    disk = tmp_path_factory.mktemp("disk")
    mounted = f'mount -t tmpfs -o size=16m tmpfs "{disk}" && exec "$@"'
    helper = Sessions(tmp_path_factory.mktemp("sessions"), ("unshare", "-rm", "sh", "-c", mounted, "sh"))
    yield helper, disk, Path(f"/proc/{helper.helper.pid}/root{disk}")
    helper.close()


@pytest.mark.skipif(not CAN_MOUNT, reason="needs user namespaces")
@pytest.mark.parametrize(
    ("left", "needed"),
    [(7_000_000, None), (600_000, 0), (50_000, 0), (0, 0)],
    ids=["seen before", "in a checkpoint", "in the best weights", "in the metrics"],
)
def test_a_full_disk_costs_no_checkpoint(small_disk, flags, whole, left, needed):
    """Whatever cannot be written first: the last checkpoint is whole, and no other remains."""
    helper, disk, seen = small_disk
    arguments = (*flags, "--output-dir", disk / "runs", "--run-name", "full")
    run = seen / "runs" / "full"
    session = helper.start(*arguments, needed=needed, raise_at=(r"rmtree .*checkpoints/\.growing$", signal.SIGSTOP))
    session.wait_until_stopped()
    with open(seen / "filler", "wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, shutil.disk_usage(seen).free - left)
    session.send(signal.SIGCONT)
    assert session.wait() == 1, session.told
    last = session.told.rstrip().splitlines()[-1]
    assert last.startswith(f"error: the disk is full: {disk / 'runs' / 'full'} has "), session.told
    assert f"--resume goes on from checkpoint-{newest(run)}" in last
    assert "Traceback" not in session.told
    assert not [path for path in run.rglob(".*") if path.name != ".lock"], "what was half-written is gone"

    (seen / "filler").unlink()
    assert helper.run(*arguments, "--resume").code == 0
    assert outcome(run) == whole
    shutil.rmtree(run)
