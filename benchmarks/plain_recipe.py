"""python benchmarks/plain_recipe.py prepare|train --bundle BUNDLE --out FOLDER [flags]

What the public notebooks for Whisper with LoRA do, for comparison: every clip padded to 30 s as float32 log-mel on the
disk, Seq2SeqTrainer with Hugging Face's defaults, 8 windows of 30 s a step. The speech is the bundle's training split.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEARNING_RATE = 1e-3


def main() -> None:
    """Prepare the features, or train on them."""
    options = parse()
    if options.work == "prepare":
        prepare(options.bundle, options.out)
    else:
        train(options)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=["prepare", "train"])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--features", type=Path, help="what prepare wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--warmup-steps", type=int, default=50)
    parser.add_argument("--logging-steps", type=int, default=10)
    parser.add_argument("--quantization", choices=["8bit", "4bit", "none"], default="none")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def prepare(bundle: Path, out: Path) -> None:
    """Write padded features and labels of the bundle's training split, clip by clip, with `Dataset.map`."""
    import io

    import soundfile
    from datasets import load_from_disk

    processor = load_processor(bundle)

    def prepare_dataset(row: dict) -> dict:
        audio, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
        row["input_features"] = processor.feature_extractor(audio, sampling_rate=rate).input_features[0]
        row["labels"] = processor.tokenizer(row["text"]).input_ids
        return row

    rows = load_from_disk(str(bundle / "data"), keep_in_memory=True)["train"].select_columns(["audio", "text"])
    rows.map(prepare_dataset, remove_columns=["audio"]).save_to_disk(str(out))


def load_processor(bundle: Path) -> Any:
    """Open the processor of the bundle's model."""
    from transformers import WhisperProcessor

    language, task = speaking(bundle)
    processor = WhisperProcessor.from_pretrained(bundle / "model", language=language, task=task)
    # The demo's tokenizer names no token for padding; Whisper's own takes the end token.
    processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


@dataclass
class PaddingCollator:
    """Pads the labels of a batch; its features have one length anyway."""

    processor: Any
    decoder_start_token_id: int

    def __call__(self, rows: list[dict]) -> dict:
        """Return input_features (batch, mel, 3000) and labels (batch, tokens), padding -100, without the start token.

        The model puts the start token before the labels itself.
        """
        features = [{"input_features": row["input_features"]} for row in rows]
        batch = self.processor.feature_extractor.pad(features, return_tensors="pt")
        padded = self.processor.tokenizer.pad([{"input_ids": row["labels"]} for row in rows], return_tensors="pt")
        labels = padded["input_ids"].masked_fill(padded.attention_mask.ne(1), -100)
        if (labels[:, 0] == self.decoder_start_token_id).all():
            labels = labels[:, 1:]
        batch["labels"] = labels
        return batch


def speaking(bundle: Path) -> tuple[str, str]:
    """Return the language of the bundle's speech, and the task."""
    settings = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["config"]
    return settings["language"].lower(), settings["task"]


def load_base(bundle: Path, quantization: str, device: str) -> Any:
    """Load the bundle's model."""
    import torch
    from transformers import BitsAndBytesConfig, WhisperForConditionalGeneration

    options: dict[str, Any] = {"dtype": torch.float32}
    if quantization == "8bit":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["proj_out"])
    elif quantization == "4bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16 if has_bf16(device) else torch.float16,
            llm_int8_skip_modules=["proj_out"],
        )
    if quantization != "none":
        options["device_map"] = {"": 0 if device == "cuda" else "cpu"}
    model = WhisperForConditionalGeneration.from_pretrained(bundle / "model", **options)
    model.generation_config.forced_decoder_ids = None
    return model


def load_model(bundle: Path, quantization: str, device: str) -> Any:
    """Load the base and put adapters on it, as the notebooks do; 8 and 4 bit bring gradient checkpointing along."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    model = load_base(bundle, quantization, device)
    if quantization != "none":
        model = prepare_model_for_kbit_training(model)
    adapter = LoraConfig(r=32, lora_alpha=64, target_modules=["q_proj", "v_proj"], lora_dropout=0.05, bias="none")
    return get_peft_model(model, adapter)


def has_bf16(device: str) -> bool:
    """Tell whether the GPU computes in bf16."""
    import torch

    return device == "cuda" and torch.cuda.is_bf16_supported()


def train(options: argparse.Namespace) -> None:
    """Train, save the adapter, and write the seconds of both and what Trainer logged into results.json."""
    from datasets import load_from_disk
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, set_seed

    set_seed(options.seed)
    processor = load_processor(options.bundle)
    model = load_model(options.bundle, options.quantization, options.device)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(options.out),
        per_device_train_batch_size=options.batch,
        learning_rate=LEARNING_RATE,
        warmup_steps=options.warmup_steps,
        max_steps=options.steps,
        logging_steps=options.logging_steps,
        bf16=has_bf16(options.device),
        fp16=options.device == "cuda" and not has_bf16(options.device),
        use_cpu=options.device == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        seed=options.seed,
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=load_from_disk(str(options.features)),
        data_collator=PaddingCollator(processor, model.config.decoder_start_token_id),
        processing_class=processor.feature_extractor,
    )
    began = time.monotonic()
    trainer.train()
    model.save_pretrained(options.out / "adapter")
    results = {"seconds": time.monotonic() - began, "log": trainer.state.log_history}
    (options.out / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
