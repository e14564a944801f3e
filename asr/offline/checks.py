"""Checks: what must be right for a training on this box, one function a line of the pre-flight's answer.

Each takes a `Box`, leaves in it what later ones build on, and imports heavy packages only once they are known to be
there.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from asr.offline.pins import compare_with, first_line, first_that_cannot_be_imported, read_pins
from asr.shared.bundle import Bundle, open_bundle
from asr.shared.meter import in_bytes
from config import TrainOffline
from utils import WhisperError, log

if TYPE_CHECKING:
    from asr.offline.estimate import Plan
    from asr.offline.footprint import Option
    from asr.offline.measuring import Measured
    from asr.offline.precision import Precision

Part = TypeVar("Part")

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
NEEDED = ("torch", "transformers", "datasets", "peft", "accelerate", "bitsandbytes")
INSTALL = "install what the bundle brought: python run_online_setup.py --install-wheels"
PASS, WARN, FAIL = "pass", "warn", "fail"


@dataclass
class Check:
    """One line of the answer.

    Attributes:
        name: what was looked at.
        status: pass, warn or fail.
        detail: what was found.
        advice: what to do; may have several lines.
    """

    name: str
    status: str
    detail: str
    advice: str = ""


@dataclass
class Box:
    """What the checks have found so far, and what those after them build on.

    Attributes:
        config: the training's settings.
        requirements: file with the pins.
        memory_limit: bytes that may be used; None asks the device.
        errors: what failed in a way that has an exit code of its own.
        estimate: figures for machines.
    """

    config: TrainOffline
    requirements: Path = REQUIREMENTS
    memory_limit: int | None = None
    errors: list[WhisperError] = field(default_factory=list)
    estimate: dict[str, Any] = field(default_factory=dict)
    imported: bool | None = None
    bundle: Bundle | None = None
    precision: Precision | None = None
    plan: Plan | None = None
    measured: Measured | None = None


class NotLookedAt(Exception):
    """A check builds on another that failed."""


def _needed(part: Part | None, of: str) -> Part:
    if part is None:
        raise NotLookedAt(of)
    return part


def check_packages(box: Box) -> Check:
    """Compare what is installed with the pins, and import what the training cannot do without."""
    pins = read_pins(box.requirements)
    missing, others = compare_with(pins)
    broken = first_that_cannot_be_imported(NEEDED)
    box.imported = None if broken else True
    told = f"{len(pins) - len(missing) - len(others)} of {len(pins)} as pinned"
    for trouble, names in (("missing", missing), ("another version", others)):
        if names:
            told += f"; {trouble}: {', '.join(names[:4])}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    if broken and broken.partition(":")[0] not in missing:
        told += f"; {broken}"
    status = FAIL if missing or broken else WARN if others else PASS
    return Check("packages", status, told, "" if status == PASS else INSTALL)


def check_bundle(box: Box) -> Check:
    """Verify the bundle and count what is in it."""
    bundle = box.bundle = open_bundle(box.config.bundle.bundle_dir)
    splits = bundle.manifest["data"]["splits"]
    counts = ", ".join(
        f"{splits[name]['clips']:,} {name}" for name in ("train", "validation", "test") if name in splits
    )
    hours = sum(split["hours"] for split in splits.values())
    size = sum(entry["size"] for entry in bundle.manifest["files"].values())
    return Check("bundle", PASS, f"{bundle.base_name}; clips: {counts}; {hours:.2f} h; {in_bytes(size)} verified")


def check_gpu(box: Box) -> Check:
    """Look at the GPU; where one is there and does not do, nothing is tried on the CPU in its place."""
    _needed(box.imported, "packages")
    from asr.offline.hardware import gpu
    from asr.offline.precision import choose_precision

    full = box.config.lora.method == "full"
    status, detail, advice = gpu("none" if full else box.config.device.quantization)
    if status != FAIL:
        box.precision = choose_precision(box.config.device, box.config.lora.method)
        box.estimate |= box.precision.describe()
    return Check("GPU", status, detail, advice)


def check_quantization(box: Box) -> Check:
    """Run a quantised layer of the kind in use, forward and backward."""
    precision = _needed(box.precision, "packages" if box.imported is None else "GPU")
    if precision.quantization == "none":
        why = "every weight is trained" if box.config.lora.method == "full" else f"weights in {_dtype(precision)}"
        return Check("quantization", PASS, f"none: {why}")
    from asr.offline.hardware import TOLERANCE, quantized_step

    layer = f"bitsandbytes' {precision.quantization.replace('bit', '-bit')} layer"
    try:
        error = quantized_step(precision)
    except Exception as trouble:
        log.debug("quantization", exc_info=True)
        return Check("quantization", FAIL, f"{layer} fails: {first_line(trouble)}", "--quantization none")
    told = f"{layer}, forward and backward: {100 * error:.1f} % from float32"
    if not error <= TOLERANCE[precision.quantization]:
        return Check("quantization", FAIL, told, "--quantization none")
    return Check("quantization", PASS, told)


def _dtype(precision: Precision) -> str:
    return str(precision.compute_dtype).removeprefix("torch.")


def check_training(box: Box) -> Check:
    """Work out what is trained, and in how many steps."""
    bundle = _needed(box.bundle, "bundle")
    _needed(box.imported, "packages")
    from asr.offline.estimate import plan
    from asr.offline.measuring import layout_of

    config = box.config
    made = box.plan = plan(config, bundle, layout_of(config, bundle))
    train = bundle.manifest["data"]["splits"]["train"]
    box.estimate |= {"method": config.lora.method, "train_clips": train["clips"], "train_hours": train["hours"]}
    box.estimate |= made.figures()
    return Check(
        "training",
        PASS,
        f"{config.lora.method}: {made.trained:,} of {made.parameters:,} parameters "
        f"({100 * made.trained / made.parameters:.2f} %); "
        f"{made.steps:,} steps, {made.steps_per_epoch:,} an epoch; {made.windows:.1f} {made.layout} windows a step, "
        f"of which {100 * made.sampler.silent_share:.0f} % is silence",
    )


def check_disk(box: Box) -> Check:
    """Try the output folder's disk: can it be written, and is there room for what a training keeps at once."""
    made = _needed(box.plan, "training")
    folder = _existing(box.config.run.output_dir)
    advice = "--output-dir names another folder"
    try:
        # Without a name where the system can do that, so that even the folder's date stays.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check("disk", FAIL, f"{folder} cannot be written: {error.strerror}", advice)
    # An old checkpoint goes when the new one is whole, and the same holds for the best weights.
    needed = (box.config.training.save_total_limit + 1) * made.checkpoint_bytes + 2 * made.weights_bytes
    free = shutil.disk_usage(folder).free
    box.estimate |= {"disk_bytes": needed, "free_disk_bytes": free}
    told = (
        f"{folder}: {in_bytes(free)} free, {in_bytes(needed)} needed (checkpoints of {in_bytes(made.checkpoint_bytes)})"
    )
    return Check("disk", PASS, told) if free >= needed else Check("disk", FAIL, told, f"make room, or {advice}")


def check_memory(box: Box) -> Check:
    """Run the largest step; where the memory does not do, tell what would."""
    made, precision = _needed(box.plan, "training"), _needed(box.precision, "GPU")
    from asr.offline.fitting import fit
    from asr.offline.hardware import usable_memory

    limit = box.memory_limit or usable_memory(precision.device)
    found = fit(box.config, _needed(box.bundle, "bundle"), precision, made, limit)
    box.measured = found.measured
    box.estimate |= {
        "peak_memory_bytes": found.peak_bytes,
        "peak_allocated_bytes": found.measured and found.measured.allocated_bytes,
        "peak_measured": found.measured is not None,
        "gradient_checkpointing": found.checkpointing,
        "usable_memory_bytes": limit,
        "alternatives": [asdict(option) for option in found.options],
    }
    told = f"{in_bytes(found.peak_bytes)} of {in_bytes(limit)} at the longest clips"
    told += ", with gradient checkpointing" if found.checkpointing else ""
    if found.fits:
        return Check("memory", PASS, told)
    if found.measured is None:
        told = f"{in_bytes(limit)} do not do for the longest clips, which need about {in_bytes(found.peak_bytes)}"
    return Check("memory", FAIL, told, _advice(found.options))


def _advice(options: list[Option]) -> str:
    if not options:
        return "no flag is enough, nor is a smaller Whisper: it takes more memory"
    lines = ["each of these would do; the first changes least:"]
    for option in options:
        time = f", {in_time(option.training_seconds)}" if option.training_seconds else ""
        lines.append(
            f"{option.flags}: {in_bytes(option.peak_bytes)}{time} ({'measured' if option.measured else 'computed'})"
        )
    return "\n".join(lines)


def check_time(box: Box) -> Check:
    """Extend what the few steps took to the whole training."""
    made, measured = _needed(box.plan, "training"), _needed(box.measured, "memory")
    validation = _needed(box.bundle, "bundle").manifest["data"]["splits"].get("validation", {}).get("clips", 0)
    training_s, evaluation_s = made.steps * measured.pace, validation * measured.clip_seconds
    total = training_s + made.evaluations * evaluation_s
    box.estimate |= {
        "seconds_per_step": measured.pace,
        "training_seconds": training_s,
        "seconds_per_evaluation": evaluation_s,
        "total_seconds": total,
    }
    told = f"about {in_time(total)}: {made.steps:,} steps of {measured.pace:.2g} s"
    if made.evaluations:
        told += f", {made.evaluations} evaluations of {in_time(evaluation_s)} (before it has learnt)"
    workers = box.config.training.dataloader_num_workers
    if measured.loader_seconds > 1.2 * measured.step_seconds:
        more = min(math.ceil(workers * measured.loader_seconds / measured.step_seconds), os.cpu_count() or 1)
        if more > workers:
            told += f"; loading the clips takes longer than the {measured.step_seconds:.2g} s of training on them"
            return Check("time", WARN, told, f"--dataloader-num-workers {more}")
    return Check("time", PASS, told)


def in_time(seconds: float) -> str:
    """Return a duration as one says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
