"""Pickled weights become safetensors with the same numbers, and nothing that is pickled is ever run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from asr.online.whisper import fetch_whisper
from config import Whisper
from utils import UserError


@pytest.fixture
def own(mini_model: Path, tmp_path: Path) -> Path:
    """A copy of the small model without weights."""
    folder = shutil.copytree(mini_model, tmp_path / "given" / "whisper-own")
    (folder / "model.safetensors").unlink()
    return folder


def fetch(source: Path, tmp_path: Path) -> Path:
    target = tmp_path / "bundle" / "model"
    fetch_whisper(Whisper(model_name_or_path=str(source)), target)
    return target


def weights_of(folder: Path) -> dict[str, Any]:
    """Every weight, as plain transformers opens the folder."""
    from transformers import WhisperForConditionalGeneration

    model, report = WhisperForConditionalGeneration.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.state_dict()


def assert_same_weights(ours: Path, theirs: Path) -> None:
    import torch

    mine, expected = weights_of(ours), weights_of(theirs)
    assert mine.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(mine[name], expected[name])] == []


@pytest.mark.parametrize("zipped", [True, False])
def test_one_pickle(own: Path, mini_model: Path, tmp_path: Path, zipped: bool) -> None:
    """In torch's format, or its older one; as usual then, with the output layer beside the embedding that it shares."""
    import torch

    state = weights_of(mini_model)
    assert state["proj_out.weight"].data_ptr() == state["model.decoder.embed_tokens.weight"].data_ptr()
    torch.save(state, own / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    target = fetch(own, tmp_path)
    assert {file.name for file in target.glob("*model*")} == {"model.safetensors"}
    assert (target / "model.safetensors").stat().st_size == (mini_model / "model.safetensors").stat().st_size
    assert (target / "model.safetensors").stat().st_mode == (target / "config.json").stat().st_mode
    assert_same_weights(target, mini_model)


def test_a_pickle_in_parts(own: Path, mini_model: Path, tmp_path: Path) -> None:
    """Each part becomes one, under an index, and the shared weights are known across parts."""
    import torch

    state = weights_of(mini_model)
    names = sorted(state)
    weight_map = {}
    for number, part in enumerate((names[:20], names[20:]), start=1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: state[name].clone() for name in part}, own / file)
        weight_map |= dict.fromkeys(part, file)
    assert weight_map["proj_out.weight"] != weight_map["model.decoder.embed_tokens.weight"]
    (own / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    target = fetch(own, tmp_path)
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sorted(file.name for file in target.glob("*model*")) == [*parts, "model.safetensors.index.json"]
    assert "proj_out.weight" not in json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]
    assert_same_weights(target, mini_model)


def test_half_precision_stays(own: Path, mini_model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    halves = {name: weight.bfloat16() for name, weight in weights_of(mini_model).items()}
    torch.save(halves, own / "pytorch_model.bin")
    written = load_file(fetch(own, tmp_path) / "model.safetensors")
    assert all(torch.equal(weight, halves[name]) for name, weight in written.items())


def test_an_output_layer_of_its_own_stays(own: Path, mini_model: Path, tmp_path: Path) -> None:
    """A copy is dropped because it is the same, not because of its name."""
    import torch
    from safetensors.torch import load_file

    state = dict(weights_of(mini_model))
    state["proj_out.weight"] = state["proj_out.weight"] + 1
    torch.save(state, own / "pytorch_model.bin")
    written = load_file(fetch(own, tmp_path) / "model.safetensors")
    assert torch.equal(written["proj_out.weight"], state["proj_out.weight"])


class Payload:
    """What a pickle can do to whoever opens it: here, make a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_a_pickle_with_a_payload_is_refused_and_not_run(own: Path, mini_model: Path, tmp_path: Path) -> None:
    import torch

    mark = tmp_path / "it ran"
    torch.save({**weights_of(mini_model), "more": Payload(mark)}, own / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds more than weights, which could run code when it is opened"):
        fetch(own, tmp_path)
    assert not mark.exists()
    assert not list((tmp_path / "bundle").iterdir())
    torch.load(own / "pytorch_model.bin", weights_only=False)
    assert mark.exists(), "the payload would have worked"


def spoil(folder: Path, trouble: str) -> None:
    import torch

    file = folder / "pytorch_model.bin"
    if trouble == "cut short":
        file.write_bytes(file.read_bytes()[:-1000])
    elif trouble == "no pickle":
        file.write_bytes(b"<html>")
    elif trouble == "empty":
        file.write_bytes(b"")
    elif trouble == "nested":
        torch.save({"state_dict": torch.load(file)}, file)
    elif trouble == "a list":
        torch.save([torch.zeros(1)], file)
    else:
        file.rename(folder / "pytorch_model-00001-of-00002.bin")
        parts = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
        if trouble != "no index":
            index = {"weight_map": parts} if trouble == "a part is missing" else {}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("cut short", "pytorch_model.bin is broken; look for a copy of the model as .safetensors"),
        ("no pickle", "pytorch_model.bin is broken"),
        ("empty", "pytorch_model.bin is broken"),
        ("nested", "pytorch_model.bin is no plain list of named weights"),
        ("a list", "pytorch_model.bin is no plain list of named weights"),
        ("a part is missing", "pytorch_model-00002-of-00002.bin is missing"),
        ("no index", "pytorch_model.bin.index.json is missing"),
        ("broken index", "pytorch_model.bin.index.json is broken"),
    ],
)
def test_a_pickle_that_is_not_whole_is_refused(
    own: Path, mini_model: Path, tmp_path: Path, trouble: str, words: str
) -> None:
    import torch

    torch.save(weights_of(mini_model), own / "pytorch_model.bin")
    spoil(own, trouble)
    with pytest.raises(UserError) as raised:
        fetch(own, tmp_path)
    assert f"--model-name-or-path {own}: {words}" in str(raised.value)
    assert not list((tmp_path / "bundle").iterdir())
