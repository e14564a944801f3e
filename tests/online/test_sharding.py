"""Sharding: large weights are spread over files that transformers puts together again, bit by bit the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from asr.online.inspection import complete
from asr.online.sharding import LARGEST, split_large_weights
from asr.shared.weights import tensors_of

SMALL = 300_000


@pytest.fixture
def model(mini_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(mini_model, tmp_path / "model")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def test_a_model_that_is_small_enough_stays(model: Path) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in model.iterdir()}
    assert LARGEST < 2**31
    assert split_large_weights(model) == []
    assert {file.name: file.stat().st_mtime_ns for file in model.iterdir()} == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_large_model_is_spread_and_comes_together_again(model: Path, dtype: torch.dtype) -> None:
    from transformers import WhisperForConditionalGeneration

    whole = {name: tensor.to(dtype) for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(whole, model / "model.safetensors", {"format": "pt"})
    expected = WhisperForConditionalGeneration.from_pretrained(model, dtype=dtype).state_dict()
    headers = tensors_of(model)
    names = split_large_weights(model, SMALL)
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert {file.name for file in model.glob("*model*")} == {*names, "model.safetensors.index.json"}
    # Only a tensor that is too large for any file stands in a larger one, and alone.
    for name in names:
        assert (model / name).stat().st_size <= SMALL or len(load_file(model / name)) == 1
    assert same(weights(model), whole)
    assert tensors_of(model) == headers
    complete(model)
    loaded = WhisperForConditionalGeneration.from_pretrained(model, dtype=dtype).state_dict()
    assert same(dict(loaded), dict(expected))


def test_a_model_in_several_files_is_spread_over_more(model: Path) -> None:
    whole = weights(model)
    few = split_large_weights(model, (model / "model.safetensors").stat().st_size * 2 // 3)
    assert len(few) == 2
    many = split_large_weights(model, SMALL)
    assert len(many) > 2
    assert {file.name for file in model.glob("*.safetensors")} == set(many)
    assert same(weights(model), whole)
    index = json.loads((model / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert split_large_weights(model, SMALL * 1000) == []


def test_a_file_that_is_cut_short_is_not_replaced(model: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-10])
    with pytest.raises(OSError, match="ends before"):
        split_large_weights(model, SMALL)
    assert (model / "model.safetensors").read_bytes() == content[:-10]
