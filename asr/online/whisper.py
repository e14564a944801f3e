"""The base model: from the Hub or a folder into the bundle, complete for a box that can fetch nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from config import Whisper
from utils import UserError, folder_made_whole, log

# Weights as safetensors alone: nothing that unpickles ever enters a bundle.
WANTED = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"]
WANTED += ["preprocessor_config.json", "processor_config.json", "tokenizer*.json", "vocab.json", "merges.txt"]
WANTED += ["normalizer.json", "added_tokens.json", "special_tokens_map.json"]
UNWANTED = ["*.fp32*", "*/*"]


def fetch_whisper(whisper: Whisper, target: Path) -> None:
    """Bring `whisper.model_name_or_path` into `target`, and prove that it is a whole Whisper.

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
    for needed in ("config.json", "generation_config.json"):
        if not (folder / needed).is_file():
            raise UserError(f"--model-name-or-path {name}: {needed} is missing")
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != "whisper":
        raise UserError(f"--model-name-or-path {name}: this is a '{kind}' model, not a Whisper")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"--model-name-or-path {name}: it has no weights as .safetensors; convert it first")
    from transformers import WhisperProcessor

    try:
        WhisperProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--model-name-or-path {name}: tokenizer or processor files are incomplete: {reason}") from None
