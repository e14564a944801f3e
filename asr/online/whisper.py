"""The base model: from the Hub or a folder into the bundle, complete for a box that can fetch nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from config import Whisper
from utils import UserError, folder_made_whole, log

# Weights as safetensors alone: nothing that unpickles ever enters a bundle.
WANTED = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"]
WANTED += ["preprocessor_config.json", "processor_config.json", "tokenizer*.json", "vocab.json", "merges.txt"]
WANTED += ["normalizer.json", "added_tokens.json", "special_tokens_map.json"]
UNWANTED = ["*.fp32*", "*/*"]


def fetch_whisper(whisper: Whisper, target: Path, before_replacing: Callable[[], None] = lambda: None) -> None:
    """Bring `whisper.model_name_or_path` into `target`, and prove that it is a whole Whisper.

    Args:
        whisper: which model.
        target: its folder; an old one stays until the new one is proven.
        before_replacing: called in between.

    Raises:
        UserError: not found, not a Whisper, or without safetensors weights.
    """
    with folder_made_whole(target) as folder:
        source = Path(whisper.model_name_or_path)
        if source.is_dir():
            _copy(source, folder)
        else:
            _download(whisper.model_name_or_path, whisper.model_revision, folder)
        _check(whisper.model_name_or_path, folder)
        before_replacing()


def _copy(source: Path, folder: Path) -> None:
    for pattern in WANTED:
        for file in source.glob(pattern):
            if file.is_file() and not any(file.match(unwanted) for unwanted in UNWANTED[:1]):
                shutil.copyfile(file, folder / file.name)


def _download(name: str, revision: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    log.info("downloading %s from the Hugging Face Hub", name)
    try:
        cached = snapshot_download(name, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED)
    except (HFValidationError, RepositoryNotFoundError):
        raise UserError(f"--model-name-or-path {name}: neither a folder here nor a model on the Hub") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--model-name-or-path {name} could not be downloaded: {reason}") from None
    _copy(Path(cached), folder)


def _check(name: str, folder: Path) -> None:
    """Look at everything that the air-gapped box will need, here where it can be fetched again."""
    try:
        _check_files(folder)
    except UserError as error:
        raise UserError(f"--model-name-or-path {name}: {error}") from None


def _check_files(folder: Path) -> None:
    for needed in ("config.json", "generation_config.json", "tokenizer.json"):
        if not (folder / needed).is_file() and not (needed == "tokenizer.json" and (folder / "vocab.json").is_file()):
            raise UserError(f"{needed} is missing")
    for file in sorted(folder.glob("*.json")):
        _read_json(file)
    kind = _read_json(folder / "config.json").get("model_type")
    if kind != "whisper":
        raise UserError(f"this is a '{kind}' model, not a Whisper")
    _check_weights(folder)
    _check_processor(folder)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file.name} is broken ({error})") from None


def _check_weights(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    weights = {file.name for file in folder.glob("*.safetensors")}
    for index in folder.glob("*.safetensors.index.json"):
        weights |= set(_read_json(index)["weight_map"].values())
    if not weights:
        raise UserError("it has no weights as .safetensors; convert it first")
    for file in sorted(weights):
        if not (folder / file).is_file():
            raise UserError(f"{file} is missing")
        try:
            with safe_open(folder / file, "np"):
                pass
        except SafetensorError as error:
            raise UserError(f"{file} is broken ({error})") from None


def _check_processor(folder: Path) -> None:
    from transformers import WhisperProcessor

    try:
        processor = WhisperProcessor.from_pretrained(folder)
    # A broken tokenizer.json surfaces as a bare Exception from the Rust side.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"its tokenizer or processor files are incomplete: {reason}") from None
    if processor.tokenizer.convert_tokens_to_ids("<|startoftranscript|>") in (None, processor.tokenizer.unk_token_id):
        raise UserError("its tokenizer does not know Whisper's tokens")
