"""Conversion: weights that are pickled become safetensors, without anything being unpickled but tensors."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from asr.shared.weights import EMBEDDING, OUTPUT, save_tensors
from utils import UserError, log, write_json

if TYPE_CHECKING:
    import torch

PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def convert(pickled: dict[str, Path], folder: Path) -> None:
    """Write pickled weights into `folder` as safetensors, file by file, in the formats that they have.

    Args:
        pickled: pytorch_model.bin, or its parts and their index, by name.
        folder: an existing one.

    Raises:
        UserError: a part is missing, broken, or holds something that is not a tensor.
    """
    parts = [PICKLE]
    if PICKLE not in pickled:
        parts = _parts(pickled)
    opened = {name: _open(name, pickled[name]) for name in parts}
    _drop_tied_copy(opened)
    weight_map: dict[str, str] = {}
    size = 0
    for name, tensors in opened.items():
        target = name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
        log.info("converting %s into %s", name, target)
        save_tensors(tensors, folder / target)
        weight_map |= dict.fromkeys(tensors, target)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if PICKLE not in pickled:
        write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map}
        )


def _parts(pickled: dict[str, Path]) -> list[str]:
    if PICKLE_INDEX not in pickled:
        raise UserError(f"{PICKLE_INDEX} is missing, which tells the parts of its weights")
    try:
        index = json.loads(pickled[PICKLE_INDEX].read_text(encoding="utf-8"))
        parts = sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{PICKLE_INDEX} is broken ({error})") from None
    missing = [name for name in parts if name not in pickled]
    if missing:
        raise UserError(f"{missing[0]} is missing")
    return parts


def _open(name: str, file: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        # Only the newer of torch's two formats can be mapped, instead of read, into memory.
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    # Broken files surface as many kinds of errors; whichever it is, nothing was run.
    except Exception as error:
        more = "Weights only load failed" in str(error) and "Unsupported operand" not in str(error)
        trouble = "holds more than weights, which could run code when it is opened" if more else "is broken"
        raise UserError(f"{name} {trouble}; look for a copy of the model as .safetensors") from None
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise UserError(f"{name} is no plain list of named weights; look for a copy of the model as .safetensors")
    return tensors


def _drop_tied_copy(opened: dict[str, dict[str, torch.Tensor]]) -> None:
    import torch

    embedding = next((tensors[EMBEDDING] for tensors in opened.values() if EMBEDDING in tensors), None)
    for tensors in opened.values():
        if OUTPUT in tensors and embedding is not None and torch.equal(tensors[OUTPUT], embedding):
            del tensors[OUTPUT]
