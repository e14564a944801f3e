"""The model: adapters of the right size, in the right place, that do something."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from asr.offline.decoding import Transcriber
from asr.offline.precision import Precision, choose_precision, limit_devices
from asr.offline.whisper import attach_lora, count_parameters, load_adapter, load_whisper, save_weights, without_adapter
from asr.shared.processor import load_processor
from config import Decoding, Device, Lora
from tests.conftest import script
from utils import UserError

CPU = Precision("cpu", "none", torch.float32)


def test_default_lora_trains_the_known_share_of_whisper_small():
    """3,538,944 of 245,273,856 parameters: 1.44 %."""
    small = WhisperConfig(
        d_model=768, encoder_layers=12, decoder_layers=12, encoder_attention_heads=12, decoder_attention_heads=12,
        encoder_ffn_dim=3072, decoder_ffn_dim=3072, vocab_size=51865,
    )  # fmt: skip
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(small)
        model.tie_weights()
        trained, total = count_parameters(attach_lora(model, Lora()))
    assert trained == 3_538_944
    assert total == 245_273_856
    assert round(100 * trained / total, 2) == 1.44


def test_only_adapters_train(mini_model):
    model = attach_lora(load_whisper(mini_model, CPU), Lora())
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert layers == {"q_proj", "v_proj"}


def test_all_linear_reaches_every_layer_but_the_output(mini_model):
    model = attach_lora(load_whisper(mini_model, CPU), Lora(target_modules=("all-linear",)))
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert layers == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}


def test_unknown_target_module_is_named(mini_model):
    with pytest.raises(UserError, match="query_proj"):
        attach_lora(load_whisper(mini_model, CPU), Lora(target_modules=("query_proj",)))


def test_task_type_stays_unset(mini_model):
    """With SEQ_2_SEQ_LM, PEFT feeds input_ids to a model that reads input_features."""
    assert attach_lora(load_whisper(mini_model, CPU), Lora()).peft_config["default"].task_type is None


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
def test_every_format_gives_gradients_to_its_adapters(mini_model, quantization):
    model = attach_lora(load_whisper(mini_model, Precision("cpu", quantization, torch.float32)), Lora())
    logits = model(input_features=torch.randn(1, 80, 500), decoder_input_ids=torch.tensor([[1, 2, 3]])).logits
    logits.float().square().mean().backward()
    gradients = [p.grad for name, p in model.named_parameters() if "lora_B" in name]
    assert all(g is not None and torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
def test_training_goes_on_after_an_evaluation(mini_model, quantization):
    """bitsandbytes repacks 4-bit weights, and casts 8-bit biases, the first time they are used without gradients."""
    precision = Precision("cpu", quantization, torch.float32)
    model = attach_lora(load_whisper(mini_model, precision), Lora())
    inputs = {"input_features": torch.randn(1, 80, 500), "decoder_input_ids": torch.tensor([[1, 2, 3]])}
    processor = load_processor(mini_model, "Korean", "transcribe")
    for _ in range(2):
        model.train()
        model(**inputs).logits.float().square().mean().backward()
        Transcriber(model, processor, precision, Decoding(generation_max_length=8)).transcribe([np.zeros(8000, "f4")])
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_float16_checkpoint_is_read_as_float32_on_a_cpu(mini_model, tmp_path):
    WhisperForConditionalGeneration.from_pretrained(mini_model, dtype=torch.float16).save_pretrained(tmp_path)
    assert load_whisper(tmp_path, CPU).dtype == torch.float32


def test_adapter_comes_back_and_can_be_switched_off(mini_model, tmp_path):
    """A saved adapter changes the reloaded base as it changed the trained one, and not while it is off."""
    model = attach_lora(load_whisper(mini_model, CPU), Lora()).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    inputs = {"input_features": torch.randn(1, 80, 500), "decoder_input_ids": torch.tensor([[1, 2, 3]])}
    with torch.no_grad():
        tuned = model(**inputs).logits
        save_weights(model, tmp_path / "adapter", "some/base")
        back = load_adapter(load_whisper(mini_model, CPU), tmp_path / "adapter").eval()
        torch.testing.assert_close(back(**inputs).logits, tuned)
        with without_adapter(back):
            base = back(**inputs).logits
        torch.testing.assert_close(base, load_whisper(mini_model, CPU).eval()(**inputs).logits)
    assert not torch.allclose(base, tuned)


def test_saved_adapter_names_no_path_of_this_machine(mini_model, tmp_path):
    save_weights(attach_lora(load_whisper(mini_model, CPU), Lora()), tmp_path / "adapter", "openai/whisper-small")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "openai/whisper-small"
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_adapter_of_another_size_is_refused(mini_model, tmp_path):
    save_weights(attach_lora(load_whisper(mini_model, CPU), Lora()), tmp_path / "adapter", "x")
    config = WhisperConfig.from_pretrained(mini_model, d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64)
    with pytest.raises(UserError, match="does not fit"):
        load_adapter(WhisperForConditionalGeneration(config), tmp_path / "adapter")


def test_automatic_choices_on_a_cpu():
    precision = choose_precision(Device(cuda_visible_devices=""))
    assert precision == Precision("cpu", "none", torch.float32)
    assert choose_precision(Device(cuda_visible_devices="", quantization="8bit")).quantization == "8bit"


@pytest.mark.parametrize(
    ("assigned", "wanted", "used"),
    [
        (None, "0", "0"),
        (None, "", ""),
        (None, "3", "3"),
        ("5", "0", "5"),
        ("5", "1", "1"),
        (None, "GPU-1a2b", "GPU-1a2b"),
    ],
)
def test_visible_devices(monkeypatch, assigned, wanted, used):
    """What a scheduler assigned outranks the default, and a flag outranks both."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", assigned or "")
    if not assigned:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    limit_devices(wanted)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == used


def test_nonsense_for_a_device_is_refused():
    with pytest.raises(UserError, match="cuda-visible-devices"):
        limit_devices("gpu zero")


@pytest.mark.parametrize("name", ["train_offline.py", "evaluate_model.py", "inference.py"])
def test_devices_are_limited_before_anything_starts_cuda(name, mini_bundle, tmp_path):
    """bitsandbytes starts CUDA at its import, which transformers and peft cause; later the limit has no effect."""
    (tmp_path / "bitsandbytes.py").write_text(
        "import os\nraise SystemExit('seen: ' + os.environ.get('CUDA_VISIBLE_DEVICES', 'nothing'))\n"
    )
    runs = ("--bundle-dir", mini_bundle, "--output-dir", tmp_path, "--cuda-visible-devices", "7")
    done = script(name, *runs, env={"PYTHONPATH": str(tmp_path)})
    assert "seen: 7" in done.stderr
