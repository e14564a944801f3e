"""Weights: what the safetensors of a Whisper's folder hold, and how such a file is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import UserError

if TYPE_CHECKING:
    import torch

# The output layer shares the weights of the token embedding; the copy that some files hold is not kept.
EMBEDDING, OUTPUT = "model.decoder.embed_tokens.weight", "proj_out.weight"


def save_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write tensors as one safetensors file that transformers opens."""
    from safetensors.torch import save_file

    whole, seen = {}, set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        # The format knows no shared memory: what a second tensor looks at is copied.
        whole[name] = tensor.clone() if storage in seen else tensor
        whole[name] = whole[name].contiguous()
        seen.add(storage)
    # safetensors makes files that only their owner may read; others copy and open a bundle too.
    file.touch()
    mode = file.stat().st_mode
    save_file(whole, file, metadata={"format": "pt"})
    file.chmod(mode)


def tensors_of(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Read shape and format of every weight from the headers of its safetensors, without the weights.

    Raises:
        UserError: a file is missing or broken.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for name in _weight_files(folder):
        if not (folder / name).is_file():
            raise UserError(f"{name} is missing")
        try:
            with safe_open(folder / name, "np") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                found |= {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
        except SafetensorError as error:
            raise UserError(f"{name} is broken ({error})") from None
    return found


def read_settings(file: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        UserError: it holds none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file.name} is broken ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file.name} is broken (no JSON object)")
    return content


def _weight_files(folder: Path) -> list[str]:
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise UserError("it has no weights, neither as .safetensors nor as pytorch_model.bin")
    try:
        names = sorted(set(read_settings(index)["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{index.name} is broken (no weight_map)") from None
    if outside:
        raise UserError(f"{index.name} names {outside[0]}, outside its folder")
    return names
