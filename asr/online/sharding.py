"""Sharding: weights in files that every tool and file system can carry, as transformers opens them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import write_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# Below 2 GiB, which some tools take for the end of a file.
LARGEST = 2_000_000_000
CHUNK = 1 << 24


@dataclass(frozen=True)
class Tensor:
    """A weight where it lies: its bytes from `begin` on in `file`, with the shape and format of the header."""

    name: str
    file: Path
    begin: int
    size: int
    described: dict[str, Any]


def split_large_weights(folder: Path, largest: int = LARGEST) -> list[str]:
    """Spread the weights of a model over files of at most `largest` bytes, if one of its files is larger.

    The bytes of a tensor pass as they are, so that memory and number formats play no part. The new files are there
    before an old one goes.

    Args:
        folder: a model with model.safetensors, or with several files and their index.
        largest: a single tensor that is larger stands alone.

    Returns:
        Names of the new files, or none where nothing was to be done.
    """
    old = [folder / name for name in _weight_files(folder)]
    if all(file.stat().st_size <= largest for file in old):
        return []
    shards = list(_fill([tensor for file in old for tensor in _tensors(file)], largest))
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write(folder / f".{name}.tmp", shard)
    weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(tensor.size for shard in shards for tensor in shard)
    for file in old:
        file.unlink()
    for name in names:
        os.replace(folder / f".{name}.tmp", folder / name)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return names


def _tensors(file: Path) -> list[Tensor]:
    """Read the header of a safetensors file: 8 bytes with its length, then JSON, then the tensors end to end."""
    with open(file, "rb") as content:
        (length,) = struct.unpack("<Q", content.read(8))
        header = json.loads(content.read(length))
    header.pop("__metadata__", None)
    found = []
    for name, entry in header.items():
        begin, end = entry.pop("data_offsets")
        found.append(Tensor(name, file, 8 + length + begin, end - begin, entry))
    return sorted(found, key=lambda tensor: tensor.begin)


def _weight_files(folder: Path) -> list[str]:
    if (folder / SINGLE).is_file():
        return [SINGLE]
    return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))


def _fill(tensors: list[Tensor], largest: int) -> Iterator[list[Tensor]]:
    shard: list[Tensor] = []
    filled = 0
    for tensor in tensors:
        # The header alone needs no more than that: two offsets have at most forty digits.
        size = tensor.size + len(_header([tensor])) + 40
        if shard and filled + size > largest:
            yield shard
            shard, filled = [], 0
        shard.append(tensor)
        filled += size
    yield shard


def _header(shard: list[Tensor]) -> bytes:
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard:
        content[tensor.name] = {**tensor.described, "data_offsets": [offset, offset + tensor.size]}
        offset += tensor.size
    text = json.dumps(content, separators=(",", ":")).encode()
    # The tensors begin at a multiple of eight bytes.
    return text + b" " * (-len(text) % 8)


def _write(file: Path, shard: list[Tensor]) -> None:
    header = _header(shard)
    with open(file, "wb") as target:
        target.write(struct.pack("<Q", len(header)) + header)
        for tensor in shard:
            with open(tensor.file, "rb") as source:
                source.seek(tensor.begin)
                left = tensor.size
                while left:
                    chunk = source.read(min(CHUNK, left))
                    if not chunk:
                        raise OSError(f"{tensor.file} ends before {tensor.name} does")
                    left -= len(chunk)
                    target.write(chunk)
        target.flush()
        os.fsync(target.fileno())
