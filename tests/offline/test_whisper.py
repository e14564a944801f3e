"""The model: adapters of the right size, in the right place, that do something."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import WhisperConfig, WhisperForConditionalGeneration

from asr.offline.decoding import Transcriber
from asr.offline.precision import Precision, choose_precision, limit_devices
from asr.offline.runs import model_fingerprint
from asr.offline.whisper import (
    attach_lora,
    check_start,
    count_parameters,
    load_adapter,
    load_whisper,
    save_weights,
    without_adapter,
)
from asr.shared.bundle import open_bundle
from asr.shared.processor import load_processor
from config import Decoding, Device, Lora
from tests.conftest import DEMO_CORPUS, script
from utils import UserError

CPU = Precision("cpu", "none", torch.float32)
STARTS = ("true", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_4")
INPUTS = {
    "input_features": torch.randn(1, 80, 500, generator=torch.Generator().manual_seed(5)),
    "decoder_input_ids": torch.tensor([[1, 2, 3]]),
}

DEMO_CLIP = DEMO_CORPUS / "clips" / "common_voice_ko_test_0000.mp3"


def logits(model) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(**INPUTS).logits


def begun(mini_model, **knobs) -> torch.nn.Module:
    """A model with adapters as they begin, from a seed of its own."""
    torch.manual_seed(7)
    return attach_lora(load_whisper(mini_model, CPU), Lora(lora_r=8, lora_dropout=0.0, **knobs))


def train_a_little(model) -> None:
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.3)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**INPUTS).logits[0], torch.tensor([5, 6, 7])).backward()
        optimizer.step()


def adapters(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


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


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 16 / 8), (True, 16 / 8**0.5)])
def test_rslora_scales_by_the_root_of_the_rank(mini_model, use_rslora, scale):
    model = begun(mini_model, lora_alpha=16, use_rslora=use_rslora)
    scales = {module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)}
    assert scales == {scale}


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
def test_dora_trains_the_magnitudes_too(mini_model, quantization):
    precision = Precision("cpu", quantization, torch.float32)
    model = attach_lora(load_whisper(mini_model, precision), Lora(use_dora=True))
    first = adapters(model)
    magnitudes = [name for name in first if "magnitude" in name]
    assert len(magnitudes) == len([name for name in first if "lora_B" in name])
    train_a_little(model)
    assert not any(torch.equal(first[name], adapters(model)[name]) for name in magnitudes)


def test_every_start_is_another_one(mini_model):
    """Each value of --init-lora-weights reaches PEFT: no two begin alike."""
    begin = [torch.cat([value.flatten() for value in adapters(begun(mini_model, init_lora_weights=s)).values()])
             for s in STARTS]  # fmt: skip
    for i, one in enumerate(begin):
        assert not any(torch.allclose(one, other, atol=1e-4) for other in begin[:i]), STARTS[i]


@pytest.mark.parametrize("start", STARTS)
def test_every_start_leaves_the_model_what_it_was(mini_model, start):
    """olora and pissa take out of the base weights what they put into the adapters."""
    model = begun(mini_model, init_lora_weights=start, target_modules=("all-linear",))
    base = load_whisper(mini_model, CPU)
    torch.testing.assert_close(logits(model), logits(base), rtol=0, atol=1e-5)
    weights = model.base_model.model.model.encoder.layers[0].self_attn.q_proj.base_layer.weight
    same = torch.equal(weights, base.model.encoder.layers[0].self_attn.q_proj.weight)
    assert same is (start in ("true", "gaussian", "orthogonal"))


@pytest.mark.parametrize("knobs", [{}, {"use_rslora": True, "use_dora": True}], ids=["plain", "rslora+dora"])
@pytest.mark.parametrize("start", ["orthogonal", "olora", "pissa", "pissa_niter_4"])
def test_a_saved_adapter_fits_the_base_whatever_its_start(mini_model, tmp_path, start, knobs):
    """Not the base less what the adapters began with: nobody who gets the adapter has that one."""
    model = begun(mini_model, init_lora_weights=start, **knobs)
    train_a_little(model)
    tuned = logits(model)
    save_weights(model, tmp_path / "adapter", "some/base")
    back = load_adapter(load_whisper(mini_model, CPU), tmp_path / "adapter")
    torch.testing.assert_close(logits(back), tuned, rtol=0, atol=1e-5)
    with without_adapter(back):
        base = logits(back)
    torch.testing.assert_close(base, logits(load_whisper(mini_model, CPU)))
    assert (tuned - base).abs().max() > 0.1
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["init_lora_weights"]) == ((8, "orthogonal") if start == "orthogonal" else (16, True))


@pytest.mark.parametrize("start", ["orthogonal", "olora", "pissa", "pissa_niter_4"])
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_start_that_quantised_weights_cannot_give_is_refused(start, quantization):
    """olora would silently train an adapter to weights that are rounded in another way than the base's."""
    with pytest.raises(UserError, match=f"--init-lora-weights {start} .*--quantization none"):
        check_start(Lora(init_lora_weights=start), Precision("cuda", quantization, torch.float16))
    check_start(Lora(init_lora_weights=start), Precision("cuda", "none", torch.float16))
    check_start(Lora(init_lora_weights=start, method="full"), Precision("cuda", "none", torch.float16))


def test_an_odd_rank_cannot_begin_orthogonally():
    with pytest.raises(UserError, match="even --lora-r, and 7 is odd"):
        check_start(Lora(lora_r=7, init_lora_weights="orthogonal"), CPU)


@pytest.mark.parametrize("start", ["olora", "pissa"])
def test_a_rank_above_what_the_weights_have_is_refused(mini_model, start):
    with pytest.raises(UserError, match="--lora-r 65"):
        attach_lora(load_whisper(mini_model, CPU), Lora(lora_r=65, init_lora_weights=start))


@pytest.mark.parametrize("start", ["true", "orthogonal", "pissa"])
def test_adapters_to_float16_weights_are_float32(mini_model, start):
    """On a GPU without bfloat16 (T4): GradScaler refuses to unscale float16 gradients."""
    half = Precision("cpu", "none", torch.float16)
    model = attach_lora(load_whisper(mini_model, half), Lora(use_dora=True, init_lora_weights=start))
    first = adapters(model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.float16}
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with torch.autocast("cpu", torch.float16):
        loss = model(**INPUTS).logits.float().square().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert not all(torch.equal(first[name], value) for name, value in adapters(model).items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_that_is_trained_whole_keeps_float32_weights(mini_model, dtype):
    """AdamW's small steps are lost on shorter ones."""
    model = load_whisper(mini_model, Precision("cpu", "none", dtype), full_weights=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_whole_model_is_saved_with_the_config_of_its_base(mini_model, tmp_path):
    """What training sets there would go on in every training that others build upon it."""
    model = load_whisper(mini_model, CPU, full_weights=True)
    model.config.use_cache = False
    model.config.apply_spec_augment, model.config.mask_time_prob = True, 0.5
    save_weights(model, tmp_path / "model", "x")
    saved, base = (WhisperConfig.from_pretrained(folder).to_dict() for folder in (tmp_path / "model", mini_model))
    assert {name for name in base if saved[name] != base[name]} <= {"_name_or_path"}


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
        Transcriber.of(model, processor, precision, Decoding(generation_max_length=8)).transcribe(
            [np.zeros(8000, "f4")]
        )
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
    tuned = logits(model)
    save_weights(model, tmp_path / "adapter", "some/base")
    back = load_adapter(load_whisper(mini_model, CPU), tmp_path / "adapter")
    torch.testing.assert_close(logits(back), tuned)
    with without_adapter(back):
        base = logits(back)
    torch.testing.assert_close(base, logits(load_whisper(mini_model, CPU)))
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
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    record = {
        "status": "finished",
        "finished": "2026-01-01T00:00:00",
        "settings": {"method": "lora"},
        "audio_layout": "packed",
        "language": "Korean",
    }
    record |= {"base_model_sha256": model_fingerprint(open_bundle(mini_bundle)), "task": "transcribe"}
    (run / "run.json").write_text(json.dumps(record))
    runs = ("--bundle-dir", mini_bundle, "--output-dir", tmp_path, "--cuda-visible-devices", "7")
    files = [DEMO_CLIP] if name == "inference.py" else []
    done = script(name, *files, *runs, env={"PYTHONPATH": str(tmp_path)})
    assert "seen: 7" in done.stderr
