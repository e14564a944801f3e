"""The model: base Whisper from the bundle in the chosen format, with LoRA adapters new or trained."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, WhisperForConditionalGeneration

from asr.offline.precision import Precision
from config import Lora
from utils import UserError, folder_made_whole

if TYPE_CHECKING:
    from peft import PeftModel

# Ways to begin that PEFT computes from the base weights, or in their format: quantised ones do not do.
NEED_FLOATS = ("orthogonal", "olora", "pissa")
# Those of them that take out of the base weights what they put into the adapters.
CHANGE_BASE = ("olora", "pissa")
# What a file need not hold: the output layer shares the embedding's weights, and the sinusoids are computed.
MADE_ANEW = {"proj_out.weight", "model.encoder.embed_positions.weight"}


def load_whisper(model_dir: Path, precision: Precision, full_weights: bool = False) -> WhisperForConditionalGeneration:
    """Load a local Whisper.

    Args:
        model_dir: folder with config.json and safetensors weights.
        precision: device and formats.
        full_weights: keep float32 weights, as training all of them needs.

    Raises:
        UserError: weights are missing, which transformers would draw at random.
    """
    options: dict[str, Any] = {"dtype": torch.float32 if full_weights else precision.compute_dtype}
    if precision.quantization != "none":
        options["quantization_config"] = _quantization(precision)
        # Trainer compares devices by number: a bare "cuda" would count as another device than cuda:0.
        options["device_map"] = {"": torch.cuda.current_device() if precision.device == "cuda" else "cpu"}
    model, found = WhisperForConditionalGeneration.from_pretrained(
        model_dir, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
    )
    _refuse_gaps(model_dir, found)
    if precision.quantization != "none" and precision.device == "cpu":
        _keep_trainable_on_cpu(model)
    # Sinusoids are no weights to be trained; from_pretrained lets go of what a new model keeps frozen.
    model.model.encoder.embed_positions.requires_grad_(False)
    # Old checkpoints force their prompt by position, which contradicts `language` and `task` in generate().
    model.generation_config.forced_decoder_ids = None
    model.base_config = copy.deepcopy(model.config)
    return model if precision.quantization != "none" else model.to(precision.device)


def _refuse_gaps(model_dir: Path, found: dict[str, Any]) -> None:
    missing = sorted(set(found["missing_keys"]) - MADE_ANEW)
    if missing:
        strange = sorted(found["unexpected_keys"])
        told = f", and {strange[0]} in it has no place" if strange else ""
        raise UserError(
            f"{model_dir} is no whole Whisper: {missing[0]} is missing ({len(missing)} weights in all){told}"
        )


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
    """Stop bitsandbytes from repacking 4-bit weights for inference: a model that was evaluated trains no more.

    And from forgetting the scales of 8-bit weights, which PEFT's DoRA takes out of the layer and puts back without.
    """

    def keep_scales(layer: Any, _: Any) -> None:
        if layer.weight.SCB is None and layer.weight.CB is not None:
            layer.weight.SCB = layer.state.SCB

    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        elif hasattr(module, "init_8bit_state"):
            module.register_forward_pre_hook(keep_scales)


def check_start(lora: Lora, precision: Precision) -> None:
    """Refuse a way to begin that cannot be; to be asked before any weights are loaded.

    Raises:
        UserError: the rank or the format of the weights does not do for it.
    """
    start, bits = lora.init_lora_weights, precision.quantization
    if lora.method == "full":
        return
    if start == "orthogonal" and lora.lora_r % 2:
        raise UserError(f"--init-lora-weights orthogonal needs an even --lora-r, and {lora.lora_r} is odd")
    if bits != "none" and start.startswith(NEED_FLOATS):
        raise UserError(
            f"--init-lora-weights {start} computes with the base weights, which {bits} makes too coarse: "
            "add --quantization none, or begin with true or gaussian"
        )


def attach_lora(model: WhisperForConditionalGeneration, lora: Lora) -> PeftModel:
    """Freeze `model` and put trainable adapters beside its target layers.

    With olora (Büyükakyüz, 2024) and pissa (Meng et al., 2024) the base weights W become W - s B0 A0, where B0 and A0
    are the adapters' first values and s their scale. These are kept for `save_weights` as `initial_adapter`.

    Raises:
        UserError: the model has no layer of a name in `lora.target_modules`, or cannot begin as `lora` says.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, prepare_model_for_kbit_training

    _check_targets(model, lora)
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    start = lora.init_lora_weights
    # task_type stays unset: SEQ_2_SEQ_LM would feed `input_ids` to a model that reads `input_features`.
    config = LoraConfig(
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules="all-linear" if "all-linear" in lora.target_modules else list(lora.target_modules),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=True if start == "true" else start,
        bias="none",
    )
    if not start.startswith(CHANGE_BASE):
        return get_peft_model(model, config)
    # A resumed run decomposes the weights anew. On the CPU the random numbers of pissa_niter are the same everywhere.
    device = model.device
    tuned = get_peft_model(model if device.type == "meta" else model.to("cpu"), config)
    tuned.initial_adapter = {
        name: tensor.clone() for name, tensor in get_peft_model_state_dict(tuned).items() if "magnitude" not in name
    }
    return tuned.to(device)


def _check_targets(model: WhisperForConditionalGeneration, lora: Lora) -> None:
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    unknown = [name for name in lora.target_modules if name not in names | {"all-linear"}]
    if unknown:
        raise UserError(
            f"--target-modules {unknown[0]}: Whisper has no such layer; it has q_proj k_proj v_proj "
            "out_proj fc1 fc2, and all-linear names them all"
        )
    width = model.config.d_model
    if lora.init_lora_weights.startswith(CHANGE_BASE) and lora.lora_r > width:
        raise UserError(
            f"--init-lora-weights {lora.init_lora_weights} finds no more than {width} directions in this model's "
            f"weights: --lora-r {lora.lora_r} must not be above {width}"
        )


def load_adapter(model: WhisperForConditionalGeneration, adapter_dir: Path) -> PeftModel:
    """Put a trained adapter on its base model.

    Raises:
        UserError: the adapter does not fit.
    """
    from peft import PeftModel, get_peft_model_state_dict

    try:
        tuned = PeftModel.from_pretrained(model, adapter_dir, local_files_only=True)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{adapter_dir} does not fit the bundle's model: {str(error).splitlines()[0]}") from None
    # PEFT leaves new, and so idle, what it finds no weights for, and lets go of weights that it has no place for.
    with safe_open(adapter_dir / "adapter_model.safetensors", "pt") as file:
        held = get_peft_model_state_dict(tuned, save_embedding_layers=False)
        strange = set(_adapter_names(file.keys())) ^ set(_adapter_names(held))
    if strange:
        raise UserError(f"{adapter_dir} does not fit the bundle's model: {min(strange)} is in only one of them")
    return tuned


def _adapter_names(names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if "lora_A" in name or "lora_B" in name)


def has_adapter(model: Any) -> TypeGuard[PeftModel]:
    """Tell whether a model is PEFT's around another, without importing PEFT, which takes seconds."""
    return hasattr(model, "get_base_model")


def without_adapter(model: torch.nn.Module) -> AbstractContextManager[None]:
    """Show the base model inside the block."""
    return model.disable_adapter() if has_adapter(model) else nullcontext()


def save_weights(model: torch.nn.Module, folder: Path, base_name: str) -> None:
    """Write what was trained: an adapter in PEFT's format, or a whole model in transformers'.

    The adapter fits the base as the bundle has it, however it began. The model's config is that of its base: what
    training sets there (no cache, SpecAugment) is no property of the model.

    Args:
        model: a PeftModel, or a plain Whisper.
        folder: its place, replaced at once when everything is written.
        base_name: what the adapter calls its base; a path of this machine would not hold anywhere else.
    """
    with folder_made_whole(folder) as beside:
        model.save_pretrained(beside)  # type: ignore[operator]
        if has_adapter(model):
            _change_config(beside, base_model_name_or_path=base_name)
            if hasattr(model, "initial_adapter"):
                _make_plain(beside, model.initial_adapter)
        else:
            config: Any = copy.deepcopy(getattr(model, "base_config", model.config))
            config.dtype, config.architectures = model.dtype, [type(model).__name__]
            config.save_pretrained(beside)
        # PEFT's card is an empty form that names this machine's paths.
        (beside / "README.md").unlink(missing_ok=True)


def _make_plain(folder: Path, initial: dict[str, torch.Tensor]) -> None:
    """Turn an adapter to the base weights W - s B0 A0 into one to W, of twice the rank and the same effect.

    W - s B0 A0 + s B A is W + s [B, -B0] [A; A0] (as PEFT converts; with DoRA the magnitudes hold for both).
    """
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, first in initial.items():
        columns = "lora_B" in name
        tensors[name] = torch.cat([tensors[name], -first if columns else first], dim=int(columns))
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    # The scale stays what it was: alpha / r, or with rsLoRA alpha / sqrt(r).
    alpha = config["lora_alpha"] * (math.sqrt(2) if config["use_rslora"] else 2)
    _change_config(folder, init_lora_weights=True, r=2 * config["r"], lora_alpha=alpha)


def _change_config(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | values
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Return how many parameters are trained, and how many there are; packed 4-bit weights are counted unpacked."""
    if has_adapter(model):
        return model.get_nb_trainable_parameters()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)
