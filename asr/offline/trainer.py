"""The trainer: Seq2SeqTrainer, with Whisper's loss right, CER by generation, and nothing lost on a crash."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from traceback import clear_frames
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    set_seed,
)
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging as transformers_logging

from asr.offline.augmentation import Augmenter, hide_stretches, require_waveforms
from asr.offline.callbacks import EvaluateEvery, KeepBest, MetricsFile, ProgressBar, StopEarly
from asr.offline.checkpoints import GROWING, checkpoint_bytes, newest_complete, put_in_place, remove_old, require_room
from asr.offline.decoding import Stopped, Transcriber
from asr.offline.encoder_window import encoder_window
from asr.offline.estimate import checkpointing_needed
from asr.offline.interruption import Interruption, leave_signals_alone
from asr.offline.lock import sole_use
from asr.offline.loss_guard import LossGuard
from asr.offline.metrics import error_rates
from asr.offline.parts import Parts
from asr.offline.precision import Precision
from asr.offline.ranks import ALONE, Ranks
from asr.offline.runs import Run
from asr.offline.sampling import WindowDataset, WindowSampler
from asr.offline.trouble import remove_leftovers, told_in_one_line
from asr.offline.whisper import attach_lora, check_start, load_whisper, save_weights
from asr.offline.windows import IGNORE, WindowCollator
from asr.shared.bundle import Bundle
from asr.shared.processor import load_processor
from config import LEARNING_RATES, TrainOffline
from utils import go_offline, log, write_json

RUNNING_LOSS = "running_loss.json"


def token_mean_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy averaged over all tokens of an optimiser step, however they are spread over windows and batches.

    Args:
        outputs: of the model; logits (windows, tokens, vocabulary).
        labels: (windows, tokens), padding -100.
        num_items_in_batch: tokens of the whole step, which Trainer counts over the accumulated batches.
    """
    loss = torch.nn.functional.cross_entropy(
        outputs.logits.float().flatten(0, 1),
        labels.to(outputs.logits.device).flatten(),
        ignore_index=IGNORE,
        reduction="sum",
    )
    return loss / (labels.ne(IGNORE).sum() if num_items_in_batch is None else num_items_in_batch)


def training_arguments(config: TrainOffline, run: Run, precision: Precision) -> Seq2SeqTrainingArguments:
    """Translate our knobs into transformers' arguments."""
    training = config.training
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.path / "tensorboard")
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(run.checkpoints_dir),
        per_device_train_batch_size=training.per_device_train_batch_size,
        per_device_eval_batch_size=config.decoding.per_device_eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate or LEARNING_RATES[config.lora.method],
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        warmup_steps=training.warmup_steps,
        lr_scheduler_type="linear",
        bf16=precision.compute_dtype == torch.bfloat16,
        fp16=precision.compute_dtype == torch.float16,
        use_cpu=precision.device == "cpu",
        activation_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="no",
        save_strategy="steps" if training.save_steps else "epoch",
        save_steps=training.save_steps or 500,
        save_total_limit=training.save_total_limit,
        logging_steps=training.logging_steps,
        # The guard stops where the loss is no number, and reads it once a step rather than once a micro-batch.
        logging_nan_inf_filter=False,
        report_to=["tensorboard"],
        dataloader_num_workers=training.dataloader_num_workers,
        # Persistent workers would draw their seeds once a process, so that a resumed run drew other random numbers.
        dataloader_persistent_workers=False,
        dataloader_pin_memory=precision.device == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        predict_with_generate=True,
        disable_tqdm=True,
        # Every trained weight is used in every step.
        ddp_find_unused_parameters=False,
        seed=config.run.seed,
    )
    # With several GPUs visible, Trainer would multiply the batch by their number and spread windows over them.
    if arguments.n_gpu > 1:
        told = "GPUs: 1 of %d visible is used; torchrun --nproc-per-node %d train_offline.py … would use them all"
        log.info(told, arguments.n_gpu, arguments.n_gpu)
        arguments._n_gpu = 1
    return arguments


class WindowLoader(DataLoader):
    """Loads windows; Trainer tells it the epoch, and the sampler plans each epoch anew."""

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class WhisperTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer for Whisper, plain or with LoRA, on windows.

    Args:
        transcriber: decodes the validation clips; CER comes from what it writes, never from teacher forcing.
        sampler: yields micro-batches of windows.
        interruption: tells when a signal asked for the end.
        ranks: the processes that train together.
        **parts: as Seq2SeqTrainer takes them.
    """

    def __init__(
        self,
        transcriber: Transcriber,
        sampler: WindowSampler,
        interruption: Interruption,
        ranks: Ranks,
        **parts: Any,
    ) -> None:
        super().__init__(compute_loss_func=token_mean_loss, **parts)
        # Trainer believes that Whisper divides its own loss under gradient accumulation. It does not.
        self.model_accepts_loss_kwargs = False
        self.transcriber, self.sampler, self.interruption = transcriber, sampler, interruption
        self.ranks = ranks
        self.guard = LossGuard(self.model.config.vocab_size)
        arguments = self.args
        batch = arguments.per_device_train_batch_size
        self.parts = Parts(batch, sampler.step_size // (batch * sampler.world), arguments.world_size)

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of windows; each rank's sampler deals it its own share, so nothing is left to divide."""
        return WindowLoader(
            self.train_dataset,
            batch_sampler=self.sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            worker_init_fn=stay_offline,
        )

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Run a micro-batch forward and backward, in as many parts as the memory asks for."""
        inputs = dict(inputs)
        clips = inputs.pop("source_ids")
        step = super().training_step
        loss = self.parts.run(lambda part: step(model, part, num_items_in_batch), model, inputs)
        self.guard.check(loss, clips, self.state.global_step + 1, last=self.accelerator.sync_gradients)
        return loss

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
        """Run the model on the window that the batch has; gradients are unaffected by the window's restoration."""
        with encoder_window(model, inputs["input_features"].shape[-1]):
            return super().compute_loss(model, inputs, **options)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval", **options: Any
    ) -> dict[str, float]:
        """Decode the validation clips, each rank its share, and log their error rates under `metric_key_prefix`.

        A signal breaks it off: nothing is logged, and a resumed session begins with it.
        """
        rows = longest_first(eval_dataset or self.eval_dataset)
        began = time.monotonic()
        mine = rows.select(self.ranks.share(len(rows)))
        try:
            texts = self.transcriber.transcribe_clips(mine, "validating", self.interruption.is_asked)
        except Stopped:
            texts = None
        if self.interruption.agree(texts is None) or texts is None:
            self.control.should_save = True
            return {}
        rates = error_rates(self.ranks.gather(texts), rows["text"])
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in rates.items()}
        metrics[f"{metric_key_prefix}_runtime"] = time.monotonic() - began
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and with the loss the share of silence in the windows of this epoch."""
        super().log(logs | {"silent_share": self.sampler.silent_share} if "loss" in logs else logs, start_time)

    def take_up(self, checkpoint: Path) -> None:
        """Go on as if no session had ended; Trainer itself forgets the loss since its last log, and new paces."""
        running = json.loads((checkpoint / RUNNING_LOSS).read_text(encoding="utf-8"))
        self._tr_loss.fill_(running["since_log"])
        self._total_loss_scalar, self._globalstep_last_logged = running["logged"], running["logged_step"]
        self.state.compute_steps(self.args, self.state.max_steps)
        if self.control.should_evaluate:
            self.evaluate()
            if self.interruption.agreed:
                raise self.interruption.ended(self.state.global_step)

    def _run_epoch(self, **given: Any) -> None:
        """Train an epoch; nothing where a resumed training is at its end, where Trainer would run one more step."""
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**given)

    def _get_output_dir(self, trial: Any) -> str:
        """Return where Trainer writes what is to be a checkpoint."""
        return str(Path(self.args.output_dir) / GROWING)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Let Trainer write beside the checkpoints; on the disk and verified, it becomes one of them."""
        folder = Path(self.args.output_dir)
        grown = folder / GROWING / f"checkpoint-{self.state.global_step}"
        running = {
            "since_log": self.accelerator.gather(self._tr_loss).mean().item(),
            "logged": self._total_loss_scalar,
            "logged_step": self._globalstep_last_logged,
        }
        try:
            if self.args.should_save:
                grown.mkdir(parents=True, exist_ok=True)
                require_room(folder, checkpoint_bytes(self.model))
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_json(grown / RUNNING_LOSS, running)
                put_in_place(grown, folder, self.args.save_total_limit)
        finally:
            if self.args.should_save:
                shutil.rmtree(folder / GROWING, ignore_errors=True)


def longest_first(rows: Dataset) -> Dataset:
    """Return clips of the bundle in the order of their length."""
    seconds = rows["duration_s"][:]
    return rows.select(sorted(range(len(seconds)), key=lambda i: -seconds[i]))


def stay_offline(_worker: int) -> None:
    """Put up the guard in a loader's worker, which on Windows and macOS is a fresh process; it ends with its parent."""
    go_offline()
    leave_signals_alone()


def build_trainer(
    config: TrainOffline, bundle: Bundle, run: Run, precision: Precision, ranks: Ranks = ALONE
) -> WhisperTrainer:
    """Load model, data and processor from the bundle, and join them into a trainer."""
    transformers_logging.disable_progress_bar()
    splits = load_from_disk(str(bundle.data_dir))
    require_waveforms(config.augmentation, "audio" in splits["train"].column_names)
    augmenter = Augmenter(config.augmentation)
    full = config.lora.method == "full"
    check_start(config.lora, precision)
    layout = run.record["audio_layout"]
    checkpointing, reason = checkpointing_needed(config, bundle, precision, layout)
    log.info("gradient checkpointing: %s (%s)", "on" if checkpointing else "off", reason)
    if ranks.is_main:
        run.update(gradient_checkpointing=checkpointing)
    # Nothing before it may draw: olora and pissa take the same base weights apart anew in each session.
    set_seed(config.run.seed)
    base = load_whisper(bundle.model_dir, precision, full_weights=full)
    model = base if full else attach_lora(base, config.lora)
    model.config.use_cache = False
    hide_stretches(model, config.augmentation)

    processor = load_processor(bundle.model_dir, bundle.language, bundle.task)
    if model.generation_config.is_multilingual:
        # A whole model that is saved writes what it was tuned for when it is not told.
        generation, tokenizer = model.generation_config, processor.tokenizer
        generation.language, generation.task = tokenizer.language, tokenizer.task
    transcriber = Transcriber.of(model, processor, precision, config.decoding, trimmed=layout == "trimmed")
    sampler = WindowSampler.of(splits["train"], config, model.config, layout, ranks.rank, ranks.world)
    arguments = training_arguments(config, run, precision)
    arguments.activation_checkpointing = checkpointing
    arguments.gradient_accumulation_steps = sampler.accumulation
    collator = WindowCollator(processor.tokenizer, transcriber.log_mel, layout, augmenter)
    trainer = WhisperTrainer(
        transcriber,
        sampler,
        Interruption(ranks),
        ranks,
        model=model,
        args=arguments,
        train_dataset=WindowDataset(splits["train"]),
        eval_dataset=splits["validation"] if len(splits["validation"]) else None,
        data_collator=collator,
    )
    _add_callbacks(trainer, config, run, bundle)
    if ranks.world > 1:
        # Ranks begin with the same weights, but are not to drop the same of their different clips.
        set_seed(config.run.seed + ranks.rank)
    return trainer


def _add_callbacks(trainer: WhisperTrainer, config: TrainOffline, run: Run, bundle: Bundle) -> None:
    trainer.remove_callback(PrinterCallback)
    evaluated = trainer.eval_dataset is not None
    every = EvaluateEvery(config.training.eval_steps) if evaluated else None
    if every:
        trainer.add_callback(every)
    if trainer.ranks.is_main:
        trainer.add_callback(MetricsFile(run))
        trainer.add_callback(ProgressBar(every))
        if evaluated:
            trainer.add_callback(KeepBest(run, bundle.base_name))
    if evaluated and config.training.early_stopping_patience:
        trainer.add_callback(StopEarly(config.training.early_stopping_patience))
    # The last one: what it ends has been saved, and all others know.
    trainer.add_callback(trainer.interruption)


class Resumption(TrainerCallback):
    """Has the trainer take up a checkpoint when all else is in place."""

    def __init__(self, trainer: WhisperTrainer, checkpoint: Path) -> None:
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.trainer.take_up(self.checkpoint)


def train(trainer: WhisperTrainer, run: Run, base_name: str) -> dict[str, Any]:
    """Train to the end, from the run's newest complete checkpoint if it has one, and return the results.

    Raises:
        Interrupted: by a signal; a checkpoint holds all that was done.
        WhisperError: the loss is bad, or the disk full.
        UserError: another process trains this run.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        if trainer.ranks.is_main:
            stack.enter_context(sole_use(run.path))
            remove_leftovers(run)
        stack.enter_context(told_in_one_line(run, checkpoint_bytes(trainer.model)))
        stack.enter_context(trainer.interruption)
        outcome = _train(trainer, trainer.ranks.first(lambda: _newest(run)))
        if trainer.eval_dataset is None:
            log.info("no validation clips: the last weights are kept")
            if trainer.ranks.is_main:
                save_weights(trainer.model, run.weights_dir, base_name)
    best = run.best
    return {
        "steps": outcome.global_step,
        # Trainer's own figure covers the last session alone.
        "training_loss": trainer._total_loss_scalar / outcome.global_step,
        "best_step": best.get("step"),
        "best_validation_cer": best.get("cer"),
        "seconds": round(time.monotonic() - began, 1),
    }


def _train(trainer: WhisperTrainer, checkpoint: str | None) -> TrainOutput:
    if checkpoint is not None:
        log.info("resuming from %s", checkpoint)
        if trainer.ranks.is_main:
            remove_old(Path(checkpoint), trainer.args.save_total_limit)
        trainer.add_callback(Resumption(trainer, Path(checkpoint)))
    try:
        return trainer.train(resume_from_checkpoint=checkpoint)
    except BaseException as error:
        # Ends the loader's workers, which go with their iterator: at exit, they would not heed the SIGTERM for them.
        clear_frames(error.__traceback__)
        # Closes the bar and TensorBoard's file; where a full disk is the trouble, it may refuse that, too.
        with suppress(Exception):
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        raise


def _newest(run: Run) -> str | None:
    checkpoint = newest_complete(run.checkpoints_dir)
    return str(checkpoint) if checkpoint else None
