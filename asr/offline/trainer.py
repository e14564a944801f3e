"""The trainer: Seq2SeqTrainer, with Whisper's loss right, CER by generation, and nothing lost on a crash."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk
from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerControl, set_seed
from transformers.utils import logging as transformers_logging

from asr.offline.callbacks import EvaluateEvery, KeepBest, MetricsFile, ProgressBar
from asr.offline.checkpoints import mark_complete, newest_complete
from asr.offline.decoding import Transcriber
from asr.offline.error_rates import error_rates
from asr.offline.precision import Precision
from asr.offline.runs import Run
from asr.offline.whisper import attach_lora, load_whisper, save_weights
from asr.offline.windows import IGNORE, WindowCollator, encoder_window
from asr.shared.bundle import Bundle
from asr.shared.processor import load_processor
from config import LEARNING_RATES, TrainOffline
from utils import Interrupted, log


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
        activation_checkpointing=training.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="no",
        save_strategy="steps" if training.save_steps else "epoch",
        save_steps=training.save_steps or 500,
        save_total_limit=training.save_total_limit,
        logging_steps=training.logging_steps,
        report_to=["tensorboard"],
        dataloader_num_workers=training.dataloader_num_workers,
        # Persistent workers would draw their seeds once a process, so that a resumed run drew other random numbers.
        dataloader_persistent_workers=False,
        dataloader_pin_memory=precision.device == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        predict_with_generate=True,
        disable_tqdm=True,
        seed=config.run.seed,
    )
    # With several GPUs visible, Trainer would multiply the batch by their number and spread windows over them.
    if arguments.n_gpu > 1:
        log.info("GPUs: 1 of %d visible is used", arguments.n_gpu)
        arguments._n_gpu = 1
    return arguments


class WhisperTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer for Whisper, plain or with LoRA.

    Args:
        transcriber: decodes the validation clips; CER comes from what it writes, never from teacher forcing.
        **parts: as Seq2SeqTrainer takes them.
    """

    def __init__(self, transcriber: Transcriber, **parts: Any) -> None:
        super().__init__(compute_loss_func=token_mean_loss, **parts)
        # Trainer believes that Whisper divides its own loss under gradient accumulation. It does not.
        self.model_accepts_loss_kwargs = False
        self.transcriber = transcriber

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
        """Run the model on the window that the batch has; gradients are unaffected by the window's restoration."""
        with encoder_window(model, inputs["input_features"].shape[-1]):
            return super().compute_loss(model, inputs, **options)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval", **options: Any
    ) -> dict[str, float]:
        """Decode the validation clips and log their error rates under `metric_key_prefix`."""
        rows = eval_dataset or self.eval_dataset
        began = time.monotonic()
        texts = self.transcriber.transcribe_clips(rows, progress="validating")
        rates = error_rates(texts, rows["text"])
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in rates.items()}
        metrics[f"{metric_key_prefix}_runtime"] = time.monotonic() - began
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            mark_complete(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")


def build_trainer(config: TrainOffline, bundle: Bundle, run: Run, precision: Precision) -> WhisperTrainer:
    """Load model, data and processor from the bundle, and join them into a trainer."""
    transformers_logging.disable_progress_bar()
    set_seed(config.run.seed)
    full = config.lora.method == "full"
    base = load_whisper(bundle.model_dir, precision, full_weights=full)
    model = base if full else attach_lora(base, config.lora)
    model.config.use_cache = False

    processor = load_processor(bundle.model_dir, bundle.language, bundle.task)
    layout = run.record["audio_layout"]
    transcriber = Transcriber(model, processor, precision, config.decoding, trimmed=layout == "trimmed")
    collator = WindowCollator(
        processor.tokenizer,
        transcriber.log_mel,
        layout=layout,
        max_tokens=base.config.max_target_positions,
    )
    splits = load_from_disk(str(bundle.data_dir))
    trainer = WhisperTrainer(
        transcriber,
        model=model,
        args=training_arguments(config, run, precision),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"] if len(splits["validation"]) else None,
        data_collator=collator,
    )
    _add_callbacks(trainer, config, run, bundle)
    return trainer


def _add_callbacks(trainer: WhisperTrainer, config: TrainOffline, run: Run, bundle: Bundle) -> None:
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(MetricsFile(run))
    trainer.add_callback(ProgressBar())
    if trainer.eval_dataset is not None:
        trainer.add_callback(EvaluateEvery(config.training.eval_steps))
        trainer.add_callback(KeepBest(run, bundle.base_name))


def train(trainer: WhisperTrainer, run: Run, base_name: str) -> dict[str, Any]:
    """Train to the end, from the run's newest complete checkpoint if it has one, and return the results."""
    checkpoint = newest_complete(run.checkpoints_dir)
    if checkpoint is not None:
        log.info("resuming from %s", checkpoint)
    began = time.monotonic()
    try:
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command with --resume goes on") from None
    if trainer.eval_dataset is None:
        log.info("no validation clips: the last weights are kept")
        save_weights(trainer.model, run.weights_dir, base_name)
    best = run.best
    return {
        "steps": outcome.global_step,
        "training_loss": outcome.training_loss,
        "best_step": best.get("step"),
        "best_validation_cer": best.get("cer"),
        "seconds": round(time.monotonic() - began, 1),
    }
