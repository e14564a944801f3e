"""The base model comes into the bundle whole, as safetensors alone, or is refused where it can be fetched again."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asr.online.inspection import complete
from asr.online.whisper import choose_files, fetch_whisper
from config import Whisper
from tests.conftest import DEMO_MODEL
from utils import UserError


@pytest.fixture
def own(mini_model: Path, tmp_path: Path) -> Path:
    """A copy of the small model, to be changed."""
    return shutil.copytree(mini_model, tmp_path / "given" / "whisper-own")


def fetch(source: Path | str, tmp_path: Path) -> Path:
    target = tmp_path / "bundle" / "model"
    fetch_whisper(Whisper(model_name_or_path=str(source)), target)
    return target


def assert_refused(source: Path, tmp_path: Path, *words: str) -> None:
    """Refused in one line that names the model and the trouble, and nothing stays behind."""
    with pytest.raises(UserError) as raised:
        fetch(source, tmp_path)
    message = str(raised.value)
    assert raised.value.exit_code == 2
    assert "\n" not in message
    assert [word for word in (f"--model-name-or-path {source}", *words) if word not in message] == []
    assert not list((tmp_path / "bundle").iterdir())


def content(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# From a folder


def test_local_folder_comes_whole(mini_model: Path, tmp_path: Path) -> None:
    assert content(fetch(mini_model, tmp_path)) == content(mini_model)


def test_the_embedded_model_comes_whole(tmp_path: Path) -> None:
    copied = content(fetch(DEMO_MODEL, tmp_path))
    assert copied == {
        name: data for name, data in content(DEMO_MODEL).items() if name.endswith((".json", ".safetensors"))
    }


def test_plain_transformers_opens_it(mini_model: Path, tmp_path: Path) -> None:
    from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperProcessor

    target = fetch(mini_model, tmp_path)
    model, report = WhisperForConditionalGeneration.from_pretrained(target, output_loading_info=True)
    assert not report["missing_keys"]
    assert model.config.d_model == 64
    processor = WhisperProcessor.from_pretrained(target)
    ids = processor.tokenizer("안녕하세요").input_ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == "안녕하세요"
    assert GenerationConfig.from_pretrained(target).is_multilingual


def test_only_what_is_needed_is_copied(own: Path, tmp_path: Path) -> None:
    """Nothing that could run code when it is opened (pickles, scripts), and no second copy of the weights."""
    unwanted = ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.fp32-00001-of-00002.safetensors"]
    unwanted += ["flax_model.msgpack", "tf_model.h5", "modeling_whisper.py", "README.md", ".gitattributes"]
    unwanted += ["runs/events.out", "checkpoint-10/model.safetensors", "checkpoint-10/config.json"]
    wanted = content(own)
    for name in unwanted:
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_bytes(b"x")
    assert content(fetch(own, tmp_path)) == wanted


def test_weights_in_several_files_come_with_their_index(own: Path, tmp_path: Path) -> None:
    from transformers import WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(own)
    (own / "model.safetensors").unlink()
    model.save_pretrained(own, max_shard_size="200KB")
    shards = {file.name for file in own.glob("*.safetensors*")}
    assert len(shards) > 2
    target = fetch(own, tmp_path)
    assert {file.name for file in target.glob("*.safetensors*")} == shards
    _, report = WhisperForConditionalGeneration.from_pretrained(target, output_loading_info=True)
    assert not report["missing_keys"]


def test_a_new_model_replaces_the_old_one(own: Path, mini_model: Path, tmp_path: Path) -> None:
    target = fetch(mini_model, tmp_path)
    (own / "processor_config.json").unlink()
    assert content(fetch(own, tmp_path)) == content(own)
    assert list(target.parent.iterdir()) == [target]


def test_a_refused_model_leaves_the_old_one(own: Path, mini_model: Path, tmp_path: Path) -> None:
    target = fetch(mini_model, tmp_path)
    (own / "generation_config.json").unlink()
    with pytest.raises(UserError):
        fetch(own, tmp_path)
    assert content(target) == content(mini_model)


def cut(name: str, share: float = 0.5) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        file = folder / name
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return spoil


def without(pattern: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    return spoil


def becomes(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def lose_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def changed(name: str, **values: object) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, **values}))
        if name.startswith("preprocessor"):
            (folder / "processor_config.json").unlink()

    return spoil


def longer_tokenizer(folder: Path) -> None:
    from transformers import WhisperTokenizer

    tokenizer = WhisperTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["안녕하십니까"])
    tokenizer.save_pretrained(folder)


def as_integers(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({name: weight.to(torch.int8) for name, weight in weights.items()}, folder / "model.safetensors")


def write_index(folder: Path, weight_map: dict[str, str] | None) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def index_outside(folder: Path) -> None:
    write_index(folder, {"a": "../model.safetensors"})


def index_of_nothing(folder: Path) -> None:
    write_index(folder, None)


def lose_the_merges(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "vocab.json")


def adapter_alone(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "another model": (becomes("config.json", '{"model_type": "bert"}'), "'bert'"),
    "no config": (without("config.json"), "config.json is missing"),
    "broken config": (cut("config.json"), "config.json"),
    "no generation_config": (without("generation_config.json"), "generation_config.json is missing"),
    "broken generation_config": (cut("generation_config.json"), "generation_config.json"),
    "no safetensors": (without("*.safetensors"), ".safetensors"),
    "weights cut short": (cut("model.safetensors"), "safetensors"),
    "a shard is missing": (lose_a_shard, "model-00002-of-00002.safetensors"),
    "no tokenizer": (without("tokenizer.json"), "tokenizer"),
    "broken tokenizer": (cut("tokenizer.json"), "tokenizer"),
    "empty tokenizer": (becomes("tokenizer.json", "{}"), "tokenizer"),
    "half a tokenizer": (lose_the_merges, "tokenizer.json is missing"),
    "no task tokens": (
        changed("generation_config.json", task_to_id=None),
        "has no task_to_id: put the one of the base",
    ),
    "English alone": (changed("generation_config.json", is_multilingual=False), "has no .en"),
    "quantised": (changed("config.json", quantization_config={"load_in_8bit": True}), "its weights are quantised"),
    "nonsense in config": (changed("config.json", d_model="many"), "config.json describes no Whisper"),
    "a list for a config": (becomes("config.json", "[]"), "config.json is broken (no JSON object)"),
    "more mel bins than weights": (
        changed("config.json", num_mel_bins=128),
        "model.encoder.conv1.weight has the shape",
    ),
    "mel bins of another model": (changed("preprocessor_config.json", feature_size=128), "makes 128 mel bins"),
    "more layers than weights": (changed("config.json", decoder_layers=2), "its weights lack model.decoder.layers.1."),
    "fewer layers than weights": (
        changed("config.json", decoder_layers=0),
        "and 23 more, for which config.json has no place",
    ),
    "more words than weights": (changed("config.json", vocab_size=2422), "has the shape (2421, 64)"),
    "a tokenizer with more words": (longer_tokenizer, "its tokenizer has 2422 tokens, and config.json only 2421"),
    "weights as integers": (as_integers, "is stored as I8"),
    "an index that leaves the folder": (index_outside, "names ../model.safetensors, outside its folder"),
    "an index of nothing": (index_of_nothing, "model.safetensors.index.json is broken"),
    "a pointer of git-lfs": (
        becomes("model.safetensors", "version https://git-lfs.github.com/spec/v1"),
        "git lfs pull",
    ),
    "an adapter": (adapter_alone, "this is a LoRA adapter, not a whole model"),
}


@pytest.mark.parametrize("trouble", SPOILT)
def test_a_folder_that_is_not_a_whole_whisper_is_refused(own: Path, tmp_path: Path, trouble: str) -> None:
    """Now, where it can be fetched again; on the air-gapped box it would be too late."""
    spoil, word = SPOILT[trouble]
    spoil(own)
    assert_refused(own, tmp_path, word)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert_refused(tmp_path / "nothing", tmp_path, "config.json is missing")


def test_a_file_is_no_folder(own: Path, tmp_path: Path) -> None:
    assert_refused(own / "model.safetensors", tmp_path, "this is a file; give the folder of a model")


# What is made where it is missing


@pytest.mark.parametrize("left", ["processor_config.json", ""])
def test_feature_settings_get_their_own_file(own: Path, mini_model: Path, tmp_path: Path, left: str) -> None:
    """Older tools ask for preprocessor_config.json; transformers 5 writes its content elsewhere, or nobody did."""
    for name in {"preprocessor_config.json", "processor_config.json"} - {left}:
        (own / name).unlink()
    made = json.loads((fetch(own, tmp_path) / "preprocessor_config.json").read_text())
    given = json.loads((mini_model / "preprocessor_config.json").read_text())
    if not left:
        # Nobody told it that the recordings it was made for are longer than its window of 250 positions.
        given |= {"chunk_length": 5, "n_samples": 80_000, "nb_max_frames": 500}
    assert made == given


# Every size


SIZES: dict[str, tuple[int, int, int, int, int]] = {
    # d_model, encoder layers, decoder layers, vocabulary, mel bins
    "tiny": (384, 4, 4, 51865, 80),
    "base": (512, 6, 6, 51865, 80),
    "small": (768, 12, 12, 51865, 80),
    "medium": (1024, 24, 24, 51865, 80),
    "large-v2": (1280, 32, 32, 51865, 80),
    "large-v3": (1280, 32, 32, 51866, 128),
    "large-v3-turbo": (1280, 32, 4, 51866, 128),
}


def hollow_whisper(folder: Path, size: str, **values: Any) -> Path:
    """Write a Whisper of true shapes whose float16 weights are a hole in the disk."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    width, encoder, decoder, words, bins = SIZES[size]
    config = WhisperConfig(
        vocab_size=words, num_mel_bins=bins, d_model=width, encoder_layers=encoder, decoder_layers=decoder,
        encoder_attention_heads=width // 64, decoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width,
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: tuple(w.shape) for name, w in WhisperForConditionalGeneration(config).state_dict().items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_MODEL / name, folder)
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), **values}))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + end)
    return folder


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_looked_through_without_its_weights(tmp_path: Path, size: str) -> None:
    """By the headers alone, and its feature settings have the mel bins of that size."""
    complete(hollow_whisper(tmp_path, size))
    made = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (made["feature_size"], made["chunk_length"]) == (SIZES[size][-1], 30)


def test_a_config_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its weights lack model\.decoder\.layers\.10\.\S+ and 671 more"):
        complete(hollow_whisper(tmp_path, "large-v3-turbo", decoder_layers=32))


# Which files


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["model.safetensors", "model-1-of-2.safetensors", "model.safetensors.index.json"], ["model.safetensors"]),
        (
            ["model.safetensors.index.json", "model-1-of-1.safetensors", "model.fp32-1-of-1.safetensors"],
            ["model-1-of-1.safetensors", "model.safetensors.index.json"],
        ),
        (
            ["pytorch_model.bin.index.json", "pytorch_model-1-of-1.bin", "training_args.bin"],
            ["pytorch_model-1-of-1.bin", "pytorch_model.bin.index.json"],
        ),
        (["flax_model.msgpack", "original/model.safetensors"], []),
    ],
)
def test_one_form_of_the_weights_is_chosen(weights: list[str], chosen: list[str]) -> None:
    """Every other form holds the same gigabytes once more."""
    assert choose_files([*weights, "config.json", "README.md"]) == sorted([*chosen, "config.json"])
