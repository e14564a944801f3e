"""The model card: README.md beside the weights, in the form that the Hugging Face Hub expects.

It holds nothing that tells where it was made: no path, no name of a machine or of a speaker.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from asr.offline.curves import rates_at
from asr.offline.pins import first_line
from asr.offline.runs import Run
from asr.shared.bundle import Bundle
from config import LEARNING_RATES, Augmentation, Lora, Training, knobs
from utils import log, write_atomically

RATES = {"cer": "CER", "cer_with_spaces": "CER with spaces", "wer": "WER"}
LAYOUTS = {
    "packed": "Layout `packed`: the clips of a step lie end to end in as few windows as they fit. Decoding pads each "
    "clip to a whole window, as other tools do.",
    "trimmed": "Layout `trimmed`: windows are cut to the longest clip of a batch, in training and in decoding.",
    "padded": "Layout `padded`: each clip has a window of its own, filled up with silence.",
}
# Knobs that say where files lie, and how often something is told or kept.
NOT_TOLD = {"noise_dir", "resume", "eval_steps", "save_steps", "save_total_limit", "logging_steps"}
NOT_TOLD |= {"dataloader_num_workers", "audio_layout", "gradient_checkpointing"}
PROMPT_TOKENS = 4


def write_card(run: Run, bundle: Bundle, results: dict[str, Any]) -> None:
    """Write README.md into the folder of a run's weights; where that cannot be, say why: no training fails for it.

    Args:
        run: trained to its end.
        bundle: that it was trained on.
        results: of the training, as run.json gets them.
    """
    try:
        write_atomically(run.weights_dir / "README.md", model_card(run, bundle, results))
    except Exception as error:
        log.warning("warning: the model card could not be written (%s)", first_line(error))
        log.debug("README.md", exc_info=True)


def model_card(run: Run, bundle: Bundle, results: dict[str, Any]) -> str:
    """Return the card of a run: metadata as YAML between two lines of dashes, then the text as Markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    facts = _facts(run, bundle, results)
    text = environment.get_template("card.md.j2").render(facts)
    return f"---\n{_metadata(facts).to_yaml()}\n---\n\n{text}"


def _facts(run: Run, bundle: Bundle, results: dict[str, Any]) -> dict[str, Any]:
    record, data = run.record, bundle.manifest["data"]
    rates = rates_at(run, results.get("best_step"))
    return {
        "name": run.path.name,
        "full": record["settings"]["method"] == "full",
        "base_model": bundle.base_name,
        "base_quoted": json.dumps(bundle.base_name, ensure_ascii=False),
        # Without an owner it is the name of a folder, which on the Hub would be somebody else's model, or none.
        "on_hub": "/" in bundle.base_name,
        "commit": _commit(bundle),
        "fingerprints": {name.removeprefix("model/"): digest for name, digest in record["base_model_sha256"].items()},
        "language": bundle.language,
        # The tokenizer takes a language by its code, too.
        "language_code": TO_LANGUAGE_CODE.get(bundle.language.lower(), bundle.language.lower()),
        "task": bundle.task,
        "splits": {name: {"speakers": None, **counts} for name, counts in data["splits"].items()},
        "sources": {_source(name, bundle): counts for name, counts in data["sources"].items()},
        "hub_datasets": [bundle.manifest["config"]["hub_dataset"]] if "hub" in data["sources"] else None,
        "rates": {title: rates[name] for name, title in RATES.items() if name in rates},
        "best_step": results.get("best_step"),
        "steps": results["steps"],
        "layout": LAYOUTS[record["audio_layout"]],
        "trimmed": record["audio_layout"] == "trimmed",
        "settings": _settings(record),
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "max_new_tokens": record["settings"]["generation_max_length"] - PROMPT_TOKENS,
    }


def _metadata(facts: dict[str, Any]) -> ModelCardData:
    measured = [
        EvalResult(
            task_type="automatic-speech-recognition",
            task_name="Automatic Speech Recognition",
            dataset_type="local",
            dataset_name="local",
            dataset_split="validation",
            metric_type=title.lower(),
            metric_name=f"validation {title}",
            metric_value=round(facts["rates"][title], 4),
        )
        for title in ("CER", "WER")
        if title in facts["rates"]
    ]
    relation = "finetune" if facts["full"] else "adapter"
    return ModelCardData(
        model_name=facts["name"] if measured else None,
        language=facts["language_code"],
        library_name="transformers" if facts["full"] else "peft",
        pipeline_tag="automatic-speech-recognition",
        base_model=facts["base_model"] if facts["on_hub"] else None,
        base_model_relation=relation if facts["on_hub"] else None,
        datasets=facts["hub_datasets"],
        tags=["whisper", *([] if facts["full"] else ["lora"])],
        metrics=["cer", "wer"],
        eval_results=measured or None,
    )


def _commit(bundle: Bundle) -> str:
    """Return the commit of a base model that came from the Hub, or ""."""
    report = bundle.path / "reports" / "model.json"
    return json.loads(report.read_text(encoding="utf-8"))["revision"] if report.is_file() else ""


def _source(name: str, bundle: Bundle) -> str:
    return f"{name} {bundle.manifest['config']['hub_dataset']}" if name == "hub" else name


def _settings(record: dict[str, Any]) -> dict[str, str]:
    """Return what decided the weights: device and formats, the knobs of method and training, what was augmented."""
    settings, precision, plan = record["settings"], record["precision"], record.get("plan")
    groups = (Training,) if settings["method"] == "full" else (Lora, Training)
    values = {entry.name: settings.get(entry.name) for group in groups for entry in fields(group)}
    unused = "num_train_epochs" if settings["max_steps"] > 0 else "max_steps"
    values |= {
        "method": settings["method"],
        "learning_rate": settings["learning_rate"] or LEARNING_RATES[settings["method"]],
        "early_stopping_patience": settings["early_stopping_patience"] or None,
        unused: None,
        "seed": settings["seed"],
        **{name: settings.get(name) for name, usual in knobs(Augmentation()) if settings.get(name) != usual},
    }
    told = {"device": precision["device"], "arithmetic": precision["compute_type"]}
    if settings["method"] != "full":
        told["frozen weights"] = precision["quantization"].replace("none", "not quantised")
    if plan:
        told["trained parameters"] = f"{plan['trainable_parameters']:,} of {plan['parameters']:,}"
    told["processes"] = str(record.get("processes", 1))
    on = {name: value for name, value in values.items() if name not in NOT_TOLD and value is not None}
    return told | {f"`{name}`": _plain(value) for name, value in on.items() if value is not False}


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
