"""The start screen: what is about to be trained, in lines of 80 columns at most."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from asr.offline.checks import in_time
from asr.offline.curves import rates_at
from asr.offline.runs import Run
from asr.offline.whisper import count_parameters
from asr.shared.bundle import Bundle
from config import Augmentation, TrainOffline, knobs
from utils import log

if TYPE_CHECKING:
    from asr.offline.trainer import WhisperTrainer

COLUMNS, LABEL = 80, 15
CHANGED = "*"


def tell(config: TrainOffline, bundle: Bundle, run: Run, trainer: WhisperTrainer) -> None:
    """Show what is about to happen, and keep its figures in run.json as `plan`."""
    plan = plan_of(config, bundle, run, trainer)
    run.update(plan=plan)
    log.info("\n%s\n", start_screen(config, bundle, run, plan))


def tell_end(run: Run, results: dict[str, Any]) -> None:
    """Say what came out of a training, and where it lies."""
    rates = rates_at(run, results.get("best_step"))
    log.info("done in %s: %s", in_time(results["seconds"]), run.path)
    if rates:
        told = f"CER {rates['cer']:.4f}, WER {rates['wer']:.4f} on the validation clips"
        log.info("best: %s, at step %d of %d", told, results["best_step"], results["steps"])
    log.info("weights and model card: %s", run.weights_dir)
    if (run.path / "curves.png").is_file():
        log.info("curves: %s", run.path / "curves.png")
    log.info("next: python evaluate_model.py")


def plan_of(config: TrainOffline, bundle: Bundle, run: Run, trainer: WhisperTrainer) -> dict[str, Any]:
    """Return what settings, data and model come to; shares lie between 0 and 1, windows are those of epoch 0."""
    training, sampler, splits = config.training, trainer.sampler, bundle.manifest["data"]["splits"]
    trained, parameters = count_parameters(trainer.model)
    per_epoch = sampler.steps_per_epoch
    steps = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * per_epoch)
    evaluated = trainer.eval_dataset is not None
    return {
        "audio_layout": run.record["audio_layout"],
        "train_clips": sampler.utterances,
        "train_hours": splits["train"]["hours"],
        "validation_clips": len(trainer.eval_dataset) if evaluated else 0,
        "trainable_parameters": trained,
        "parameters": parameters,
        "trainable_share": trained / parameters,
        "processes": trainer.args.world_size,
        "utterances_per_step": min(
            trainer.args.world_size * training.per_device_train_batch_size * training.gradient_accumulation_steps,
            sampler.utterances,
        ),
        "windows_per_step": sampler.windows_per_step,
        "silent_share": sampler.silent_share,
        "steps_per_epoch": per_epoch,
        "optimizer_steps": steps,
        "learning_rate": trainer.args.learning_rate,
        "evaluations": math.ceil(steps / (training.eval_steps or per_epoch)) if evaluated else 0,
        "checkpoints": math.ceil(steps / (training.save_steps or per_epoch)),
    }


def start_screen(config: TrainOffline, bundle: Bundle, run: Run, plan: dict[str, Any]) -> str:
    """Return the screen; a value that is not the default is marked."""
    lines = []
    for label, text in _entries(_Shown(config), bundle, run, plan):
        lines += textwrap.wrap(
            text,
            COLUMNS,
            initial_indent=f"{label:<{LABEL}}",
            subsequent_indent=" " * LABEL,
            break_long_words=False,
            break_on_hyphens=False,
        )
    screen = "\n".join(lines)
    return f"{screen}\n{' ' * LABEL}({CHANGED} not the default)" if CHANGED in screen else screen


class _Shown:
    """Gives the value of a knob as it is shown."""

    def __init__(self, config: TrainOffline) -> None:
        self.values, self.defaults = dict(knobs(config)), dict(knobs(TrainOffline()))

    def __getitem__(self, name: str) -> str:
        """Return the value, marked where it is not the default."""
        value = self.values[name]
        text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        return text + self.mark(name)

    def mark(self, name: str) -> str:
        """Return the mark of a knob that is not at its default, or nothing."""
        return CHANGED if self.values[name] != self.defaults[name] else ""


def _entries(shown: _Shown, bundle: Bundle, run: Run, plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    splits = bundle.manifest["data"]["splits"]
    yield "run", str(run.path)
    yield "base model", f"{bundle.base_name}; {bundle.language}, {bundle.task}"
    yield "train", _split(splits["train"], plan["train_clips"])
    yield "validation", _split(splits["validation"], plan["validation_clips"])
    yield "method", _method(shown)
    share = f"{100 * plan['trainable_share']:.2f} %"
    yield "", f"{plan['trainable_parameters']:,} of {plan['parameters']:,} parameters train ({share})"
    yield "layout", _layout(shown, plan)
    yield "batch", _batch(shown, plan)
    yield "steps", _steps(shown, plan)
    yield "evaluations", _evaluations(shown, plan)
    yield "checkpoints", _checkpoints(shown, plan)
    yield "augmentation", _augmentation(shown)
    yield "expected time", "follows after the first steps"


def _split(counts: dict[str, Any], clips: int) -> str:
    speakers = f", {counts['speakers']:,} speakers" if counts.get("speakers") else ""
    return f"{clips:,} clips, {counts['hours']:.2f} h{speakers}" if clips else "no clips"


def _method(shown: _Shown) -> str:
    if shown.values["method"] == "full":
        return f"{shown['method']}: every weight"
    more = [name for name in ("use_rslora", "use_dora") if shown.values[name]]
    begun = shown["init_lora_weights"]
    told = f"{shown['method']}: r {shown['lora_r']}, alpha {shown['lora_alpha']}, dropout {shown['lora_dropout']}"
    told += "".join(f", {name.removeprefix('use_')}{CHANGED}" for name in more)
    told += f", begun as {begun}" if shown.mark("init_lora_weights") else ""
    return f"{told}, on {shown['target_modules']}"


def _layout(shown: _Shown, plan: dict[str, Any]) -> str:
    silent = f"{100 * plan['silent_share']:.1f} % silence"
    timed = f"{100 * shown.values['timestamp_probability']:g} %{shown.mark('timestamp_probability')} with timestamps"
    name = plan["audio_layout"] + shown.mark("audio_layout")
    return f"{name}: {plan['windows_per_step']:.1f} windows a step, {timed}, {silent}"


def _batch(shown: _Shown, plan: dict[str, Any]) -> str:
    processes = f"{plan['processes']} process" + ("es" if plan["processes"] > 1 else "")
    utterances = f"{shown['per_device_train_batch_size']} utterances"
    return f"{utterances} x {shown['gradient_accumulation_steps']} accumulated x {processes}"


def _steps(shown: _Shown, plan: dict[str, Any]) -> str:
    steps, per_epoch = plan["optimizer_steps"], plan["steps_per_epoch"]
    mark = shown.mark("max_steps") or shown.mark("num_train_epochs")
    rate = f"peak learning rate {plan['learning_rate']:g}{shown.mark('learning_rate')} after {shown['warmup_steps']}"
    never = ", which it never reaches" if shown.values["warmup_steps"] > steps else ""
    epochs = f"{steps / per_epoch:.3g} epoch{'' if steps == per_epoch else 's'} of {per_epoch:,}"
    return f"{steps:,}{mark} ({epochs}); {rate}{never}"


def _evaluations(shown: _Shown, plan: dict[str, Any]) -> str:
    if not plan["evaluations"]:
        return "none: there are no validation clips"
    told = f"{plan['evaluations']}, {_when(shown, 'eval_steps', plan)}; the best CER is kept"
    patience = shown["early_stopping_patience"]
    return told + (f"; stops after {patience} without a better one" if shown.values["early_stopping_patience"] else "")


def _checkpoints(shown: _Shown, plan: dict[str, Any]) -> str:
    return f"{plan['checkpoints']}, {_when(shown, 'save_steps', plan)}; the newest {shown['save_total_limit']} are kept"


def _when(shown: _Shown, name: str, plan: dict[str, Any]) -> str:
    """Say how often something happens that a knob of steps controls, 0 of which is once an epoch."""
    if (shown.values[name] or plan["steps_per_epoch"]) >= plan["optimizer_steps"]:
        return f"at the end{shown.mark(name)}"
    return f"every {shown[name]} steps" if shown.values[name] else "one an epoch"


def _augmentation(shown: _Shown) -> str:
    names = [name for name, _ in knobs(Augmentation()) if shown.mark(name)]
    return ", ".join(f"{name.replace('_', ' ')} {shown[name]}" for name in names) or "none"
