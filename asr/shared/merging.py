"""Merging: one of our own runs becomes a plain Whisper, to be tuned further or used by other tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.shared.weights import EMBEDDING, OUTPUT, save_tensors, tensors_of
from utils import UserError, log, sha256_of, write_json

if TYPE_CHECKING:
    import torch

RUN = "run.json"
# Beside a model that came from a run: from which one. So the same command may be given again.
ORIGIN = "merged_from.json"


def merge_run(run_dir: Path, base_dir: Path, folder: Path, full_precision: bool = False) -> str | None:
    """Write the model that a run made into `folder`: the base with its adapter merged in, or the fully tuned one.

    Weights are merged in float32 and kept in the base's own format. All the rest is the base's.

    Args:
        run_dir: a finished run, with run.json.
        base_dir: the model that the run was trained on, or this very run as it was merged before.
        folder: an existing one.
        full_precision: keep what is merged in float32, whatever format the base has.

    Returns:
        The audio layout that the model is made for by now, or None for every one.

    Raises:
        UserError: the run is not finished or not whole, or `base_dir` holds another model.
    """
    record = _record(run_dir)
    full = record["settings"]["method"] == "full"
    trained = run_dir / ("model" if full else "adapter")
    weights = {file.name: sha256_of(file) for file in sorted(trained.glob("*.safetensors"))}
    if not weights:
        raise UserError(f"{trained} has no weights as .safetensors: this copy of the run is not whole")
    layout = "trimmed" if record.get("audio_layout") == "trimmed" else None
    origin = {"weights_sha256": weights, "base_model_sha256": record["base_model_sha256"]}
    if _is_merged(base_dir, origin):
        log.info("%s is this run's model already", base_dir)
        shutil.copytree(base_dir, folder, dirs_exist_ok=True)
        return layout
    _check_base(record, base_dir)
    _copy(base_dir, folder, all_but="*.safetensors*")
    if full:
        _copy(trained, folder, all_but="generation_config.json")
    else:
        log.info("merging %s into %s", trained, base_dir)
        save_tensors(_merged(base_dir, trained, full_precision), folder / "model.safetensors")
    write_json(folder / ORIGIN, {"run": run_dir.resolve().name, "base_model": record["base_model"], **origin})
    return layout


def _record(run_dir: Path) -> dict[str, Any]:
    try:
        record = json.loads((run_dir / RUN).read_text(encoding="utf-8"))
        complete = {"settings", "base_model", "base_model_sha256"} <= record.keys() and "method" in record["settings"]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{RUN} is broken ({error})") from None
    if record.get("status") != "finished":
        raise UserError("this run's training did not finish; train_offline.py --resume goes on with it")
    if not complete:
        raise UserError(f"{RUN} does not tell the run's method and base model: it is of no run of this suite")
    return record


def _is_merged(base_dir: Path, origin: dict[str, Any]) -> bool:
    try:
        noted = json.loads((base_dir / ORIGIN).read_text(encoding="utf-8"))
        return all(noted[name] == value for name, value in origin.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check_base(record: dict[str, Any], base_dir: Path) -> None:
    # The names are those of the bundle's manifest, from which the run has them.
    found = {f"model/{file.name}": sha256_of(file) for file in sorted(base_dir.glob("*.safetensors"))}
    if found != record["base_model_sha256"]:
        base = record["base_model"]
        there = "which is another one" if found else "where there is none"
        raise UserError(
            f"this run was trained on {base}, and its base is taken from {base_dir}, {there}: bring that base first "
            f"(download_model.py --model-name-or-path {base}), then this run; or give the --bundle-dir that has it"
        )


def _copy(source: Path, folder: Path, all_but: str) -> None:
    for file in source.iterdir():
        if file.is_file() and not file.match(all_but):
            shutil.copyfile(file, folder / file.name)


def _merged(base_dir: Path, adapter_dir: Path, full_precision: bool) -> dict[str, torch.Tensor]:
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError
    from transformers import WhisperForConditionalGeneration
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    model = WhisperForConditionalGeneration.from_pretrained(
        base_dir, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    try:
        adapted = PeftModel.from_pretrained(model, adapter_dir, local_files_only=True)
        # safe_merge refuses weights that are no numbers.
        plain = adapted.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{adapter_dir} does not fit its base: {reason}") from None
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    stored = {name: kinds[kind] for name, (_, kind) in tensors_of(base_dir).items()}
    stored.setdefault(EMBEDDING, stored.get(OUTPUT, torch.float32))
    if full_precision:
        stored = dict.fromkeys(stored, torch.float32)
    return {name: tensor.to(stored[name]) for name, tensor in plain.state_dict().items() if name in stored}
