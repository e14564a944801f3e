"""Models: Whispers of the true dimensions with random weights, which cost what the trained ones cost."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

from benchmarks.measuring import DEMO_MODEL

# d_model, layers, heads and mel bins, of encoder and decoder alike (Radford et al., 2022, table 1).
SIZES = {
    "tiny": (384, 4, 6, 80),
    "base": (512, 6, 8, 80),
    "small": (768, 12, 12, 80),
    "large-v3": (1280, 32, 20, 128),
}
# By how much the scores of a model that is sure of its texts are larger: no token becomes another by that.
SURE = 16


def make_model(
    size: str,
    folder: Path,
    processor: Path | None = None,
    seed: int = 0,
    endless: bool = False,
    sure: bool = False,
    half: bool = True,
) -> Path:
    """Write a random-initialised Whisper into `folder` and return it.

    Args:
        size: one of `SIZES`.
        folder: new.
        processor: folder with config.json, generation_config.json, preprocessor_config.json and the tokenizer of a
            Whisper; by default those of the demo, with its small vocabulary.
        seed: of the weights.
        endless: for decoding: each clip gets a text of its own, as long as it may be; with the usual weights all clips
            get much the same.
        sure: its texts are likely to it, as those of a trained model are; a program that tries what is unlikely again
            and again would do so with every window of another.
        half: the weights are stored in float16, as those of large-v3 are on the Hub; else in float32, as those of the
            smaller ones are.
    """
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    width, layers, heads, mel_bins = SIZES[size]
    source = processor or DEMO_MODEL
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"), copy_function=shutil.copyfile)
    config = WhisperConfig.from_pretrained(
        source,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=mel_bins,
        max_source_positions=1500,
        init_std=2 / math.sqrt(width) if endless else 0.02,
    )
    _set_mel_bins(folder, mel_bins)
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    if endless:
        # Without an embedding a token is never the likeliest; the end is the first one that is no text.
        model.model.decoder.embed_tokens.weight.data[config.eos_token_id :] = 0
    if sure:
        for part in model.model.decoder.layer_norm.parameters():
            part.data *= SURE
    model.generation_config = GenerationConfig.from_pretrained(source)
    (model.half() if half else model).save_pretrained(folder)
    return folder


def _set_mel_bins(folder: Path, mel_bins: int) -> None:
    """Tell the feature extractor, in whichever of its files the folder has."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            content.get("feature_extractor", content)["feature_size"] = mel_bins
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
