"""python -m benchmarks.plain_evaluation --bundle BUNDLE --adapter FOLDER --out FILE.json [flags]

What the public notebooks for Whisper with LoRA do to evaluate, for comparison: every clip padded to 30 s as float32
log-mel, 8 at a time in the order of the split, `generate` with base and adapter under PEFT, rates by jiwer. In one
thing it is quicker than most of them: the features of a batch are made when its turn comes, and not stored before.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.plain_recipe import PaddingCollator, has_bf16, load_base, load_processor, speaking


def main() -> None:
    """Write down what is heard, judge it, and write seconds, texts and rates as JSON."""
    options = parse()
    options.out.write_text(json.dumps(evaluate(options), ensure_ascii=False), encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=255)
    parser.add_argument("--quantization", choices=["8bit", "4bit", "none"], default="none")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    return parser.parse_args()


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of the loop, the text of each clip, and both error rates."""
    import jiwer
    from datasets import load_from_disk

    processor = load_processor(options.bundle)
    model = load_model(options.bundle, options.adapter, options.quantization, options.device)
    rows = load_from_disk(str(options.bundle / "data"))[options.split]
    began = time.monotonic()
    texts, references = transcribe(model, processor, rows, options)
    seconds = time.monotonic() - began
    rates = {"cer": jiwer.cer(references, texts), "wer": jiwer.wer(references, texts)}
    return {"seconds": seconds, "texts": texts, **rates}


def load_model(bundle: Path, adapter: Path, quantization: str, device: str) -> Any:
    """Load the base and put a trained adapter on it."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_base(bundle, quantization, device), adapter)
    return (model if quantization != "none" else model.to(device)).eval()


def transcribe(model: Any, processor: Any, rows: Any, options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return what the model writes of each row, and what was said."""
    import soundfile
    import torch
    from torch.utils.data import DataLoader

    collator = PaddingCollator(processor, model.config.decoder_start_token_id)

    def prepare(row: dict) -> dict:
        audio, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
        features = processor.feature_extractor(audio, sampling_rate=rate).input_features[0]
        return {"input_features": features, "labels": processor.tokenizer(row["text"]).input_ids}

    def collate(batch: list[dict]) -> dict:
        return collator([prepare(row) for row in batch])

    tokenizer, (language, task) = processor.tokenizer, speaking(options.bundle)
    dtype = torch.bfloat16 if has_bf16(options.device) else torch.float16
    texts: list[str] = []
    references: list[str] = []
    for batch in DataLoader(rows, batch_size=options.batch, collate_fn=collate):
        with torch.no_grad(), torch.autocast(options.device, dtype, enabled=options.device == "cuda"):
            written = model.generate(
                input_features=batch["input_features"].to(options.device),
                language=language,
                task=task,
                max_new_tokens=options.max_new_tokens,
            )
        said = batch["labels"].masked_fill(batch["labels"] == -100, tokenizer.pad_token_id)
        texts += tokenizer.batch_decode(written, skip_special_tokens=True)
        references += tokenizer.batch_decode(said, skip_special_tokens=True)
    return texts, references


if __name__ == "__main__":
    main()
