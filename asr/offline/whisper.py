"""The model: base Whisper from the bundle in the chosen format, with LoRA adapters new or trained."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, WhisperForConditionalGeneration

from asr.offline.precision import Precision
from config import Lora
from utils import UserError, folder_made_whole


def load_whisper(model_dir: Path, precision: Precision, full_weights: bool = False) -> WhisperForConditionalGeneration:
    """Load a local Whisper.

    Args:
        model_dir: folder with config.json and safetensors weights.
        precision: device and formats.
        full_weights: keep float32 weights, as training all of them needs.
    """
    options: dict[str, Any] = {"dtype": torch.float32 if full_weights else precision.compute_dtype}
    if precision.quantization != "none":
        options["quantization_config"] = _quantization(precision)
        # Trainer compares devices by number: a bare "cuda" would count as another device than cuda:0.
        options["device_map"] = {"": torch.cuda.current_device() if precision.device == "cuda" else "cpu"}
    model = WhisperForConditionalGeneration.from_pretrained(
        model_dir, local_files_only=True, use_safetensors=True, **options
    )
    if precision.quantization == "4bit" and precision.device == "cpu":
        _keep_trainable_on_cpu(model)
    # Sinusoids are no weights to be trained; from_pretrained lets go of what a new model keeps frozen.
    model.model.encoder.embed_positions.requires_grad_(False)
    # Old checkpoints force their prompt by position, which contradicts `language` and `task` in generate().
    model.generation_config.forced_decoder_ids = None
    return model if precision.quantization != "none" else model.to(precision.device)


def _quantization(precision: Precision) -> BitsAndBytesConfig:
    # proj_out shares its weights with the token embedding, which cannot be quantised.
    if precision.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["proj_out"])
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=precision.compute_dtype,
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["proj_out"],
    )


def _keep_trainable_on_cpu(model: WhisperForConditionalGeneration) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for inference: a model that was evaluated trains no more."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def attach_lora(model: WhisperForConditionalGeneration, lora: Lora) -> PeftModel:
    """Freeze `model` and put trainable adapters beside its target layers.

    Raises:
        UserError: the model has no layer of a name in `lora.target_modules`.
    """
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    unknown = [name for name in lora.target_modules if name not in names | {"all-linear"}]
    if unknown:
        raise UserError(
            f"--target-modules {unknown[0]}: Whisper has no such layer; it has q_proj k_proj v_proj "
            "out_proj fc1 fc2, and all-linear names them all"
        )
    everything = "all-linear" in lora.target_modules
    # task_type stays unset: SEQ_2_SEQ_LM would feed `input_ids` to a model that reads `input_features`.
    config = LoraConfig(
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules="all-linear" if everything else list(lora.target_modules),
        bias="none",
    )
    return get_peft_model(model, config)


def load_adapter(model: WhisperForConditionalGeneration, adapter_dir: Path) -> PeftModel:
    """Put a trained adapter on its base model.

    Raises:
        UserError: the adapter does not fit.
    """
    try:
        return PeftModel.from_pretrained(model, adapter_dir, local_files_only=True)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{adapter_dir} does not fit the bundle's model: {str(error).splitlines()[0]}") from None


def without_adapter(model: torch.nn.Module) -> AbstractContextManager[None]:
    """Show the base model inside the block."""
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def save_weights(model: torch.nn.Module, folder: Path, base_name: str) -> None:
    """Write what was trained: an adapter in PEFT's format, or a whole model in transformers'.

    Args:
        model: a PeftModel, or a plain Whisper.
        folder: its place, replaced at once when everything is written.
        base_name: what the adapter calls its base; a path of this machine would not hold anywhere else.
    """
    with folder_made_whole(folder) as beside:
        model.save_pretrained(beside)  # type: ignore[operator]
        config_file = beside / "adapter_config.json"
        if config_file.is_file():
            config = json.loads(config_file.read_text(encoding="utf-8"))
            config["base_model_name_or_path"] = base_name
            config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        # PEFT's card is an empty form that names this machine's paths.
        (beside / "README.md").unlink(missing_ok=True)


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Return how many parameters are trained, and how many there are; packed 4-bit weights are counted unpacked."""
    if isinstance(model, PeftModel):
        return model.get_nb_trainable_parameters()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)
