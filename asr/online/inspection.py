"""Inspection: is a folder a whole Whisper, with every file that a box without a network will open?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from asr.shared.weights import EMBEDDING, OUTPUT, read_settings, tensors_of
from utils import UserError

if TYPE_CHECKING:
    from transformers import WhisperConfig

FEATURES = "preprocessor_config.json"
# Formats of unquantised weights, as safetensors calls them.
FLOATS = {"F64", "F32", "F16", "BF16"}
FROM_ITS_BASE = "put the one of the base model that it was tuned from into a copy of its folder, and give that folder"


def complete(folder: Path) -> None:
    """Look at everything that the air-gapped box will need, here where it can be fetched again.

    The feature settings of its own file, which older tools ask for, are written where they are missing.

    Raises:
        UserError: something is missing or broken, or does not fit the rest.
    """
    for needed in ("config.json", "generation_config.json", "tokenizer.json"):
        if not (folder / needed).is_file() and not (needed == "tokenizer.json" and _has_word_lists(folder)):
            advice = f": {FROM_ITS_BASE}" if needed == "generation_config.json" else ""
            raise UserError(f"{needed} is missing{advice}")
    for file in sorted(folder.glob("*.json")):
        read_settings(file)
    config = _config(folder)
    _check_generation(folder)
    _check_weights(folder, config)
    _complete_features(folder, config)
    _check_processor(folder, config)


def _has_word_lists(folder: Path) -> bool:
    return (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()


def _config(folder: Path) -> WhisperConfig:
    from transformers import WhisperConfig

    content = read_settings(folder / "config.json")
    kind = content.get("model_type")
    if kind != "whisper":
        raise UserError(f"this is a '{kind}' model, not a Whisper")
    if content.get("quantization_config"):
        raise UserError("its weights are quantised: give the model that they were made from")
    try:
        return WhisperConfig.from_pretrained(folder)
    # Each kind of nonsense has an error of its own.
    except Exception as error:
        raise UserError(f"config.json describes no Whisper ({_first_line(error)})") from None


def _check_generation(folder: Path) -> None:
    """See that generate() will know the tokens of languages and tasks."""
    generation = read_settings(folder / "generation_config.json")
    if generation.get("is_multilingual") is False:
        raise UserError("it knows English alone: give the multilingual one, whose name has no .en")
    for tokens in ("lang_to_id", "task_to_id"):
        if not generation.get(tokens):
            raise UserError(f"generation_config.json has no {tokens}: {FROM_ITS_BASE}")


def _check_weights(folder: Path, config: WhisperConfig) -> None:
    """Compare the headers of the weights with the model that config.json describes, which takes no memory."""
    import torch
    from transformers import WhisperForConditionalGeneration

    found = tensors_of(folder)
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in WhisperForConditionalGeneration(config).state_dict().items()}
    missing = expected.keys() - found.keys()
    if len(missing & {EMBEDDING, OUTPUT}) == 1:
        missing -= {EMBEDDING, OUTPUT}
    if missing:
        raise UserError(f"its weights lack {_some(missing)}")
    unexpected = found.keys() - expected.keys()
    if unexpected:
        raise UserError(f"its weights hold {_some(unexpected)}, for which config.json has no place")
    for name, (shape, kind) in found.items():
        if shape != expected[name]:
            raise UserError(f"{name} has the shape {shape}, and config.json asks for {expected[name]}")
        if kind not in FLOATS:
            raise UserError(f"{name} is stored as {kind}: give a model whose weights are not quantised")


def _complete_features(folder: Path, config: WhisperConfig) -> None:
    from transformers import WhisperFeatureExtractor

    if (folder / FEATURES).is_file():
        return
    processor = folder / "processor_config.json"
    inside = read_settings(processor).get("feature_extractor") if processor.is_file() else None
    if inside:
        extractor = WhisperFeatureExtractor.from_dict(inside)
    else:
        # The encoder takes 50 positions a second.
        extractor = WhisperFeatureExtractor(config.num_mel_bins, chunk_length=config.max_source_positions // 50)
    extractor.save_pretrained(folder)


def _check_processor(folder: Path, config: WhisperConfig) -> None:
    from transformers import WhisperProcessor

    try:
        processor = WhisperProcessor.from_pretrained(folder)
    # A broken tokenizer.json surfaces as a bare Exception from the Rust side.
    except Exception as error:
        raise UserError(f"its tokenizer or processor files are incomplete: {_first_line(error)}") from None
    tokenizer = processor.tokenizer
    if tokenizer.convert_tokens_to_ids("<|startoftranscript|>") in (None, tokenizer.unk_token_id):
        raise UserError("its tokenizer does not know Whisper's tokens")
    tokens = 1 + max(tokenizer.get_vocab().values())
    if tokens > config.vocab_size:
        raise UserError(f"its tokenizer has {tokens} tokens, and config.json only {config.vocab_size} (vocab_size)")
    for bins in (processor.feature_extractor.feature_size, read_settings(folder / FEATURES).get("feature_size")):
        if bins != config.num_mel_bins:
            raise UserError(f"{FEATURES} makes {bins} mel bins, and config.json takes {config.num_mel_bins}")


def _some(names: set[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
