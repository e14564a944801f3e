"""A run of ours becomes a plain Whisper, and only on the base that it was trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from asr.online.sealing import report_model
from asr.online.whisper import fetch_whisper
from config import Bundle, Whisper
from download_model import bring_model
from utils import UserError, sha256_of


@pytest.fixture
def target(mini_model: Path, tmp_path: Path) -> Path:
    """A bundle's model, with the base in place."""
    return shutil.copytree(mini_model, tmp_path / "bundle" / "model")


def write_run(folder: Path, base: Path, method: str = "lora", **record: Any) -> Path:
    """Write a finished run as a training leaves it, with weights that are not those of the base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import WhisperForConditionalGeneration

    torch.manual_seed(1)
    model = WhisperForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    if method == "lora":
        adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "fc1"]))
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.2)
        adapted.save_pretrained(folder / "adapter")
    else:
        for weight in model.parameters():
            weight.data.add_(torch.randn_like(weight), alpha=0.05)
        model.save_pretrained(folder / "model")
    content = {
        "status": "finished",
        "settings": {"method": method},
        "audio_layout": "packed",
        "base_model": "openai/whisper-mini",
        "base_model_sha256": {f"model/{file.name}": sha256_of(file) for file in base.glob("*.safetensors")},
        **record,
    }
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def logits(folder: Path, adapter: Path | None = None) -> Any:
    """Of a plain Whisper in float32, with an adapter beside it or not: windows, tokens, vocabulary."""
    import torch
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration

    model, report = WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    torch.manual_seed(0)
    features, tokens = torch.randn(2, 80, 500), torch.randint(0, 2421, (2, 9))
    with torch.no_grad():
        return model.eval()(input_features=features, decoder_input_ids=tokens).logits


def fetch(run: Path, target: Path) -> str | None:
    return fetch_whisper(Whisper(model_name_or_path=str(run)), target).audio_layout


def assert_refused(run: Path, target: Path, *words: str) -> None:
    before = {file.name: file.read_bytes() for file in target.iterdir()} if target.exists() else {}
    with pytest.raises(UserError) as raised:
        fetch(run, target)
    assert [word for word in (f"--model-name-or-path {run}: ", *words) if word not in str(raised.value)] == []
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before if before else not target.exists()


def settings_of(folder: Path) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.name != "merged_from.json" and file.suffix != ".safetensors"
    }


def test_an_adapter_is_merged_into_its_base(mini_model: Path, target: Path, tmp_path: Path) -> None:
    """Plain transformers hears the same from it as from base and adapter together; all else is the base's."""
    import torch

    run = write_run(tmp_path / "runs" / "first", mini_model)
    expected, base = logits(mini_model, run / "adapter"), logits(mini_model)
    assert fetch(run, target) is None
    merged = logits(target)
    assert torch.allclose(merged, expected, atol=1e-5, rtol=0)
    assert (merged - base).abs().max() > 0.1, "the adapter does something"
    assert settings_of(target) == settings_of(mini_model)


def test_the_format_of_the_base_is_kept(mini_model: Path, tmp_path: Path) -> None:
    """A merge in the base's own half precision would lose more than the rounding at its end."""
    import torch
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(mini_model, tmp_path / "bundle" / "model")
    halves = {name: weight.half() for name, weight in load_file(mini_model / "model.safetensors").items()}
    save_file(halves, base / "model.safetensors", metadata={"format": "pt"})
    run = write_run(tmp_path / "runs" / "first", base)
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    fetch(run, base)
    merged = load_file(base / "model.safetensors")
    assert {name: weight.dtype for name, weight in merged.items()} == dict.fromkeys(halves, torch.float16)
    layer = "model.encoder.layers.0.fc1"
    a, b = (adapter[f"base_model.model.{layer}.lora_{part}.weight"] for part in "AB")
    assert torch.equal(merged[f"{layer}.weight"], (halves[f"{layer}.weight"].float() + 2 * b @ a).half())
    untouched = "model.encoder.layers.0.self_attn.k_proj.weight"
    assert torch.equal(merged[untouched], halves[untouched])


def test_a_fully_tuned_model_is_taken_as_it_is(mini_model: Path, target: Path, tmp_path: Path) -> None:
    import torch

    run = write_run(tmp_path / "runs" / "full", mini_model, method="full")
    fetch(run, target)
    assert sha256_of(target / "model.safetensors") == sha256_of(run / "model" / "model.safetensors")
    assert (target / "generation_config.json").read_bytes() == (mini_model / "generation_config.json").read_bytes()
    assert (target / "tokenizer.json").read_bytes() == (mini_model / "tokenizer.json").read_bytes()
    assert not torch.allclose(logits(target), logits(mini_model), atol=0.1)


def test_the_same_command_may_be_given_again(mini_model: Path, target: Path, tmp_path: Path) -> None:
    """By then the bundle holds the merged model, not the run's base: it is known again, and not merged twice."""
    run = write_run(tmp_path / "runs" / "first", mini_model)
    fetch(run, target)
    first = {file.name: file.read_bytes() for file in target.iterdir()}
    fetch(run, target)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == first


def test_one_run_after_the_other(mini_model: Path, target: Path, tmp_path: Path) -> None:
    """The second run was trained on what the first became."""
    import torch

    fetch(write_run(tmp_path / "runs" / "first", mini_model), target)
    once = shutil.copytree(target, tmp_path / "once")
    second = write_run(tmp_path / "runs" / "second", once)
    fetch(second, target)
    assert torch.allclose(logits(target), logits(once, second / "adapter"), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("trained", "recorded"), [("trimmed", "trimmed"), ("packed", None), ("padded", None)])
def test_the_layout_that_it_is_made_for_goes_along(
    mini_model: Path, target: Path, tmp_path: Path, trained: str, recorded: str | None
) -> None:
    """A model that was tuned on trimmed windows is to be tuned further on such."""
    run = write_run(tmp_path / "runs" / "first", mini_model, audio_layout=trained)
    report_model(target.parent, "openai/whisper-mini", "", None)
    bring_model(Bundle(target.parent), Whisper(model_name_or_path=str(run)))
    report = json.loads((target.parent / "reports" / "model.json").read_text(encoding="utf-8"))
    assert report == {"base_model": "first", "revision": "", "audio_layout": recorded}


# Refused


def test_another_base(mini_model: Path, target: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "first", mini_model, base_model_sha256={"model/model.safetensors": "0" * 64})
    assert_refused(
        run, target, "trained on openai/whisper-mini", f"taken from {target}, which is another one",
        "download_model.py --model-name-or-path openai/whisper-mini",
    )  # fmt: skip


def test_no_base_yet(mini_model: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "first", mini_model)
    assert_refused(run, tmp_path / "bundle" / "model", "where there is none: bring that base first")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"status": "running"}, "did not finish; train_offline.py --resume goes on with it"),
        ({"settings": {}}, "does not tell the run's method and base model"),
        ({"settings": {"method": "full"}}, "has no weights as .safetensors: this copy of the run is not whole"),
    ],
)
def test_a_run_that_is_not_whole(
    mini_model: Path, target: Path, tmp_path: Path, record: dict[str, Any], words: str
) -> None:
    assert_refused(write_run(tmp_path / "runs" / "first", mini_model, **record), target, words)


@pytest.mark.parametrize("text", ["{", "[]", '{"status": "finished", "settings": 1, "base_model": 1}'])
def test_a_broken_record(target: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "run.json").write_text(text)
    assert_refused(tmp_path / "first", target, "run.json ")


@pytest.mark.parametrize("trouble", ["cut short", "no numbers", "of another model"])
def test_an_adapter_that_does_not_fit(mini_model: Path, target: Path, tmp_path: Path, trouble: str) -> None:
    from safetensors.torch import load_file, save_file

    run = write_run(tmp_path / "runs" / "first", mini_model)
    file = run / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    if trouble == "cut short":
        file.write_bytes(file.read_bytes()[:-10])
    elif trouble == "no numbers":
        save_file({name: weight * float("nan") for name, weight in weights.items()}, file)
    else:
        save_file({name: weight[:, :3].contiguous() for name, weight in weights.items()}, file)
    assert_refused(run, target, f"{run / 'adapter'} does not fit its base")
