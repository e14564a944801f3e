"""Runs: the folder that a training leaves behind, and how the next step finds it."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from asr.offline.checkpoints import MARK
from asr.offline.lock import sole_use
from asr.shared.bundle import Bundle
from asr.shared.cli import settings_of, to_toml
from config import TrainOffline, UseRun
from utils import UserError, log, recover_folder, write_atomically, write_json

# What a resumed run may change: where things lie, how often they are told and when it ends early, not what a step
# computes. Checkpointed activations are computed again from the same numbers.
MAY_CHANGE = {"bundle_dir", "output_dir", "run_name", "resume", "cuda_visible_devices", "save_steps", "logging_steps"}
MAY_CHANGE |= {"save_total_limit", "dataloader_num_workers", "per_device_eval_batch_size"}
MAY_CHANGE |= {"gradient_checkpointing", "early_stopping_patience"}
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "evaluate", "jiwer")


@dataclass(frozen=True)
class Run:
    """One run's folder and the places in it."""

    path: Path

    @property
    def adapter_dir(self) -> Path:
        """The LoRA adapter with the best CER, in PEFT's format."""
        return self.path / "adapter"

    @property
    def model_dir(self) -> Path:
        """With method=full: the whole model with the best CER, in transformers' format."""
        return self.path / "model"

    @property
    def weights_dir(self) -> Path:
        """Whichever of the two this run's method writes."""
        return self.model_dir if self.record["settings"]["method"] == "full" else self.adapter_dir

    @property
    def checkpoints_dir(self) -> Path:
        """Trainer checkpoints, for --resume."""
        return self.path / "checkpoints"

    @property
    def record(self) -> dict[str, Any]:
        """What run.json says, or {} where there is none."""
        try:
            return json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}

    @property
    def best(self) -> dict[str, Any]:
        """Step and validation CER of the weights that are kept, or {} before the first evaluation."""
        file = self.path / "best.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def keep_best(self, step: int, cer: float) -> None:
        """Note which weights are kept."""
        write_json(self.path / "best.json", {"step": step, "cer": cer})

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return self.record.get("status") == "finished"

    @property
    def has_something(self) -> bool:
        """Whether there is anything in it that training made."""
        made = [self.adapter_dir, self.model_dir, *self.checkpoints_dir.glob(f"*/{MARK}")]
        return self.finished or any(path.exists() for path in made)

    def update(self, **values: Any) -> None:
        """Change entries of run.json."""
        write_json(self.path / "run.json", {**self.record, **values})


def model_fingerprint(bundle: Bundle) -> dict[str, str]:
    """SHA-256 of the base model's weight files: an adapter belongs to these weights and no others."""
    files = bundle.manifest["files"].items()
    return {name: entry["sha256"] for name, entry in files if name.endswith(".safetensors")}


def start_run(config: TrainOffline, bundle: Bundle, processes: int = 1) -> Run:
    """Open the run that `config` names: a new folder, or with `resume` the one to go on with.

    Args:
        config: of the training.
        bundle: opened.
        processes: that train together.

    Raises:
        UserError: the name is taken, or what would be resumed was made with other settings, data or processes.
    """
    settings = settings_of(config)
    run = _to_resume(config) if config.training.resume else None
    if run is not None:
        if not run.finished:
            _refuse_if_in_use(run)
        _check_same(run, settings, bundle, processes)
        recover_folder(run.weights_dir)
        log.info("run: %s (resumed)", run.path)
        return run
    run = _new_folder(config)
    layout, reason = _layout(config.training.audio_layout, bundle)
    log.info("audio layout: %s (%s)", layout, reason)
    run.update(
        status="running",
        audio_layout=layout,
        started=_now(),
        arguments=sys.argv[1:],
        settings=settings,
        processes=processes,
        bundle_sha256=bundle.manifest_sha256,
        base_model=bundle.base_name,
        base_model_sha256=model_fingerprint(bundle),
        language=bundle.language,
        task=bundle.task,
        versions={"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
    )
    # After run.json, without which a folder counts as somebody else's. Neither name nor resume belongs to what is
    # trained: run again, it is a run of its own.
    write_atomically(run.path / "config.toml", to_toml(config, leave_out={"run_name", "resume", "check", "json"}))
    log.info("run: %s", run.path)
    return run


def _refuse_if_in_use(run: Run) -> None:
    """Refuse at once what `train` would refuse once the model is loaded: another process trains this run."""
    with sole_use(run.path):
        pass


def _layout(wished: str, bundle: Bundle) -> tuple[str, str]:
    if wished != "auto":
        return wished, "as set"
    made_for = bundle.manifest["config"].get("audio_layout")
    return (made_for, "auto, what the bundle's model was made for") if made_for else ("packed", "auto")


def _new_folder(config: TrainOffline) -> Run:
    name = config.run.run_name or datetime.now().strftime("%Y%m%d-%H%M%S")
    run = Run(config.run.output_dir / name)
    # A run that broke off before its first checkpoint may be begun again; nothing else is ever removed.
    if run.record and not run.has_something:
        _refuse_if_in_use(run)
        shutil.rmtree(run.path)
    # Hidden files are what a crash left of run.json itself.
    if run.path.exists() and any(not path.name.startswith(".") for path in run.path.iterdir()):
        raise UserError(f"--run-name {name}: {run.path} exists already; choose another name, or add --resume")
    run.path.mkdir(parents=True, exist_ok=True)
    return run


def finish_run(run: Run, results: dict[str, Any]) -> None:
    """Mark a run as finished, with its results."""
    run.update(status="finished", finished=_now(), results=results)


def find_run(use: UseRun, bundle: Bundle) -> Run:
    """Return the run to use: the one named, or the newest finished one.

    Raises:
        UserError: there is none, it is not finished, or it was trained on another base model than the bundle's.
    """
    run = _named(use) if use.run is not None else _newest(use.output_dir)
    if run.record.get("base_model_sha256") != model_fingerprint(bundle):
        raise UserError(
            f"{run.path} was trained on another base model ({run.record.get('base_model')}) than "
            f"{bundle.model_dir}; give its --bundle-dir"
        )
    return run


def _named(use: UseRun) -> Run:
    assert use.run is not None
    run = next((Run(p) for p in (use.run, use.output_dir / use.run) if (p / "run.json").is_file()), None)
    if run is None:
        raise UserError(f"--run {use.run}: there is no run in that folder, nor in {use.output_dir}")
    if not run.finished:
        raise UserError(f"--run {use.run}: its training did not finish; train_offline.py --resume goes on with it")
    return run


def _newest(output_dir: Path) -> Run:
    runs = [run for run in _all_runs(output_dir) if run.finished]
    if not runs:
        raise UserError(f"no finished run in {output_dir}: train_offline.py makes one (--output-dir, --run)")
    run = max(runs, key=lambda run: run.record["finished"])
    log.info("run: %s (the newest finished one)", run.path)
    return run


def _all_runs(output_dir: Path) -> list[Run]:
    folders = output_dir.iterdir() if output_dir.is_dir() else []
    return [run for run in map(Run, sorted(folders)) if run.record]


def _to_resume(config: TrainOffline) -> Run | None:
    if config.run.run_name:
        candidates = [Run(config.run.output_dir / config.run.run_name)]
    else:
        candidates = [run for run in _all_runs(config.run.output_dir) if not run.finished]
    begun = [run for run in candidates if run.record and run.has_something]
    if not begun:
        log.info("nothing to resume: starting anew")
        return None
    return max(begun, key=lambda run: run.record["started"])


def _check_same(run: Run, settings: dict[str, Any], bundle: Bundle, processes: int) -> None:
    old = run.record
    if old["bundle_sha256"] != bundle.manifest_sha256:
        raise UserError(f"{run.path} was trained on another bundle than {bundle.path}: start a new run")
    # A step has the clips of all of them, and each draws random numbers of its own.
    if old.get("processes", 1) != processes:
        raise UserError(
            f"{run.path} was started with {old.get('processes', 1)} processes (now {processes}): start as many, as by "
            "torchrun --nproc-per-node, or start a new run"
        )
    before = old["settings"]
    changed = [name for name, value in settings.items() if name not in MAY_CHANGE and before.get(name, value) != value]
    if changed:
        told = ", ".join(f"--{n.replace('_', '-')} {before[n]} (now {settings[n]})" for n in changed)
        raise UserError(f"{run.path} was started with {told}: give the same settings, or start a new run")


def _now() -> str:
    return datetime.now().astimezone().isoformat()
