"""The base model: from the Hub, a folder or a run into the bundle, complete for a box that can fetch nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from asr.online import model_hub
from asr.online.conversion import convert
from asr.online.inspection import complete
from asr.online.sharding import split_large_weights
from asr.shared.merging import RUN, merge_run
from config import Whisper
from utils import UserError, folder_made_whole, log

SETTINGS = {"config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"}
SETTINGS |= {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "normalizer.json"}
SETTINGS |= {"added_tokens.json", "special_tokens_map.json"}
# The forms that weights come in, the best first; nothing pickled ever enters a bundle.
WEIGHTS = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Fetched:
    """What came into the bundle.

    Attributes:
        revision: its commit on the Hub, or "" where it came from a folder.
        audio_layout: the one that it is made for, or None for every one.
    """

    revision: str = ""
    audio_layout: str | None = None


def fetch_whisper(whisper: Whisper, target: Path, before_replacing: Callable[[], None] = lambda: None) -> Fetched:
    """Bring `whisper.model_name_or_path` into `target`, and prove that it is a whole Whisper.

    Args:
        whisper: which model: a Hub id with its revision, a folder, or a run of ours. The adapter of a run is merged
            into the base that stands in `target`.
        target: its folder; an old model stays until the new one is proven.
        before_replacing: called in between.

    Raises:
        UserError: not found, not a Whisper, not whole, or with weights that cannot be had as safetensors.
    """
    try:
        with folder_made_whole(target) as folder:
            fetched = _bring(whisper, target, folder)
            complete(folder)
            split_large_weights(folder)
            before_replacing()
    except UserError as error:
        raise UserError(f"--model-name-or-path {whisper.model_name_or_path}: {error}") from None
    return fetched


def _bring(whisper: Whisper, target: Path, folder: Path) -> Fetched:
    source = Path(whisper.model_name_or_path)
    if source.is_file():
        raise UserError("this is a file; give the folder of a model")
    if (source / RUN).is_file():
        return Fetched(audio_layout=merge_run(source, target, folder))
    if source.is_dir():
        names = choose_files(file.name for file in source.iterdir() if file.is_file())
        _place({name: source / name for name in names}, folder)
        return Fetched()
    model = model_hub.list_model(whisper.model_name_or_path, whisper.model_revision)
    log.info("downloading %s at commit %s", model.name, model.commit)
    _place(model_hub.download(model, choose_files(model.files), folder), folder)
    return Fetched(model.commit)


def choose_files(names: Iterable[str]) -> list[str]:
    """Return which files of a repository make a Whisper: its settings, and its weights in the best form they have.

    Raises:
        UserError: it is an adapter alone.
    """
    there = [name for name in names if "/" not in name]
    if "adapter_config.json" in there and "config.json" not in there:
        raise UserError(
            "this is a LoRA adapter, not a whole model: give the run that made it, or merge it into its base first"
        )
    for form in WEIGHTS:
        weights = [name for name in there if any(fnmatchcase(name, pattern) for pattern in form)]
        if weights:
            break
    return sorted({*SETTINGS.intersection(there), *weights})


def _place(files: dict[str, Path], folder: Path) -> None:
    """Copy files into the folder, and convert those that are pickled."""
    pickled = {name: file for name, file in files.items() if name.endswith((".bin", ".bin.index.json"))}
    for name, file in files.items():
        with open(file, "rb") as content:
            if content.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(f"{name} is only git-lfs's pointer to the file: run 'git lfs pull' in that folder")
        if name not in pickled:
            shutil.copyfile(file, folder / name)
    if pickled:
        convert(pickled, folder)
