"""The model card: what the Hub reads in it, what a reader can do with it, and what it must not give away."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from datasets import load_from_disk
from huggingface_hub import ModelCard
from peft import PeftModel

from asr.offline.card import model_card, write_card
from asr.offline.curves import read_metrics
from asr.offline.decoding import Transcriber
from asr.offline.precision import Precision
from asr.offline.runs import Run, start_run
from asr.offline.whisper import attach_lora, load_whisper, save_weights
from asr.shared.audio import SAMPLE_RATE, load_audio
from asr.shared.bundle import Bundle, open_bundle
from asr.shared.processor import load_processor
from config import Decoding, Lora
from tests.conftest import DEMO_MODEL, script
from tests.offline.test_trainer import configuration

CPU = Precision("cpu", "none", torch.float32)
RESULTS = {"steps": 12, "best_step": 6, "best_validation_cer": 0.25}
METRICS = [
    {"step": 6, "loss": 1.5, "learning_rate": 1e-3},
    {"step": 6, "eval_cer": 0.25, "eval_cer_with_spaces": 0.3, "eval_wer": 0.5},
    {"step": 12, "eval_cer": 0.75, "eval_cer_with_spaces": 0.8, "eval_wer": 1.0},
]


@pytest.fixture
def bundle(mini_bundle) -> Bundle:
    return open_bundle(mini_bundle)


def from_the_hub(bundle: Bundle, **config: Any) -> Bundle:
    """Return the bundle as it would be with a base model of the Hub."""
    settings = {**bundle.manifest["config"], **config}
    return replace(bundle, manifest={**bundle.manifest, "base_model": "openai/whisper-small", "config": settings})


def trained(bundle: Bundle, folder: Path, *flags: object, metrics: list[dict] = METRICS) -> Run:
    """Return a run as a training leaves it, all but its weights."""
    run = start_run(configuration(bundle.path, folder, "--run-name", "night", *flags), bundle)
    run.update(precision=CPU.describe(), plan={"trainable_parameters": 1234, "parameters": 56789})
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics), encoding="utf-8")
    return run


def parsed(run: Run, bundle: Bundle, results: dict[str, Any] = RESULTS) -> ModelCard:
    """Return the card as the Hub's own package reads it; metadata that it cannot read raise."""
    return ModelCard(model_card(run, bundle, results), ignore_metadata_errors=False)


def test_the_hub_reads_what_it_expects(bundle, tmp_path):
    card = parsed(trained(bundle, tmp_path), from_the_hub(bundle))
    metadata = card.data.to_dict()
    assert {name: metadata[name] for name in metadata if name != "model-index"} == {
        "language": "ko",
        "library_name": "peft",
        "base_model": "openai/whisper-small",
        "base_model_relation": "adapter",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["whisper", "lora"],
        "metrics": ["cer", "wer"],
    }
    found = [(result.metric_type, result.metric_value, result.dataset_split) for result in card.data.eval_results]
    assert found == [("cer", 0.25, "validation"), ("wer", 0.5, "validation")], "of the best step, not of the last"
    assert {result.dataset_name for result in card.data.eval_results} == {"local"}


def test_a_tuned_model_is_no_adapter(bundle, tmp_path):
    card = parsed(trained(bundle, tmp_path, "--method", "full"), from_the_hub(bundle))
    assert (card.data.library_name, card.data.base_model_relation, card.data.tags) == (
        "transformers", "finetune", ["whisper"])  # fmt: skip
    assert "peft" not in re.search(r"```python.*?```", card.text, re.S)[0]
    assert "`lora_r`" not in card.text
    assert "| `learning_rate` | 1e-05 |" in card.text


def test_a_base_model_from_a_folder_is_not_taken_for_one_of_the_hub(bundle, tmp_path):
    """A link to a model of the same name would be a lie; the fingerprint tells which weights these were."""
    card = parsed(trained(bundle, tmp_path), bundle)
    assert bundle.base_name == "mini-whisper"
    assert card.data.base_model is None
    assert "base_model_relation" not in card.data.to_dict()
    assert "`mini-whisper`" in card.text
    assert bundle.manifest["files"]["model/model.safetensors"]["sha256"] in card.text


def test_the_text_tells_data_settings_and_results(bundle, tmp_path):
    text = parsed(trained(bundle, tmp_path, "--lora-r", 7, "--gain-db", 6), bundle).text
    splits = bundle.manifest["data"]["splits"]
    assert f"| train | 24 | {splits['train']['hours']:.2f} | {splits['train']['speakers']} |" in text
    assert "common-voice 32." in text
    for row in ("| CER | 0.2500 |", "| CER with spaces | 0.3000 |", "| WER | 0.5000 |", "| `lora_r` | 7 |",
                "| `gain_db` | 6.0 |", "| `target_modules` | q_proj v_proj |", "| `learning_rate` | 0.001 |",
                "| trained parameters | 1,234 of 56,789 |", "| arithmetic | float32 |"):  # fmt: skip
        assert row in text
    assert "step 6 of 12" in text
    assert "mask_time_prob" not in text, "what was off is not told"
    assert f"torch {torch.__version__}" in text


@pytest.mark.parametrize(("layout", "warned"), [("packed", False), ("padded", False), ("trimmed", True)])
def test_the_reader_is_warned_of_windows_that_other_tools_do_not_cut(bundle, tmp_path, layout, warned):
    text = parsed(trained(bundle, tmp_path, "--audio-layout", layout), bundle).text
    assert f"Layout `{layout}`" in text
    assert ("look\n  at its CER before relying on it" in text) == warned


def test_the_commit_and_the_dataset_on_the_hub_are_named(bundle, tmp_path):
    copy = tmp_path / "bundle"
    (copy / "reports").mkdir(parents=True)
    (copy / "reports" / "model.json").write_text(json.dumps({"revision": "973afd24965f72e36ca33b3055d56a652f456b4d"}))
    data = {**bundle.manifest["data"], "sources": {"hub": {"kept": 32}}}
    known = from_the_hub(bundle, hub_dataset="someone/speech")
    known = replace(known, path=copy, manifest={**known.manifest, "data": data})
    card = parsed(trained(bundle, tmp_path / "runs"), known)
    assert card.data.datasets == ["someone/speech"]
    assert "commit `973afd24965f72e36ca33b3055d56a652f456b4d`" in card.text
    assert "hub someone/speech 32." in card.text


def test_without_validation_clips_nothing_is_claimed(bundle, tmp_path):
    run = trained(bundle, tmp_path, metrics=METRICS[:1])
    card = parsed(run, bundle, {"steps": 12, "best_step": None, "best_validation_cer": None})
    assert card.data.eval_results is None
    assert "model_name" not in card.data.to_dict()
    assert "Nothing was measured" in card.text


def test_the_card_gives_nothing_of_the_machine_away(bundle, tmp_path):
    """No path, no host, no address, no speaker: the card is what is published."""
    run = trained(bundle, tmp_path, "--noise-dir", tmp_path / "secret-noise", "--noise-snr-db", 10,
                  "--cuda-visible-devices", "GPU-1a2b")  # fmt: skip
    known = from_the_hub(bundle, common_voice="/mnt/secret/cv", db_url="mysql://user@secret.example/speech")
    run.update(hardware={"platform": "secret-platform", "cpu_count": 2}, arguments=["--bundle-dir", "/mnt/secret"])
    content = model_card(run, known, RESULTS)
    speakers = {row["speaker"] for split in load_from_disk(str(bundle.data_dir)).values() for row in split}
    assert {name for name in speakers if name and name in content} == set()
    assert len(speakers) > 1
    for secret in (tmp_path, bundle.path, Path.home(), sys.prefix, "secret", "GPU-1a2b", "/mnt"):
        assert str(secret) not in content
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", content)
    assert "| `noise_snr_db` | 10.0 |" in content


def tuned_demo(folder: Path, method: str) -> PeftModel:
    """Put the demo's model, and that model tuned, into a folder under the names that the card uses."""
    shutil.copytree(DEMO_MODEL, folder / "mini-whisper")
    model = attach_lora(load_whisper(DEMO_MODEL, CPU), Lora())
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    if method == "full":
        save_weights(copy.deepcopy(model).merge_and_unload(), folder / "model", "mini-whisper")
    else:
        save_weights(model, folder / "adapter", "mini-whisper")
    return model


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_code_in_the_card_runs(bundle, tmp_path, method):
    """With plain transformers and peft, and hears with the tuned weights what we hear."""
    reader = tmp_path / "reader"
    model = tuned_demo(reader, method)
    run = trained(bundle, tmp_path, "--generation-max-length", 40, "--method", method)
    waveform = load_audio(load_from_disk(str(bundle.data_dir))["test"][0]["audio"]["bytes"])
    soundfile.write(reader / "clip.wav", waveform, SAMPLE_RATE, subtype="FLOAT")
    code = re.search(r"```python\n(.*?)```", parsed(run, bundle).text, re.S)[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", cwd=reader, timeout=300,
        env={**environment, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    processor = load_processor(DEMO_MODEL, "Korean", "transcribe")
    transcriber = Transcriber.of(model, processor, CPU, Decoding(generation_max_length=40))
    (heard,) = transcriber.transcribe([waveform])
    with model.disable_adapter():
        (without,) = transcriber.transcribe([waveform])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == heard != without


def test_the_card_is_written_whole_into_the_folder_of_the_weights(bundle, tmp_path, mini_model):
    run = trained(bundle, tmp_path)
    save_weights(attach_lora(load_whisper(mini_model, CPU), Lora()), run.weights_dir, bundle.base_name)
    write_card(run, bundle, RESULTS)
    assert {file.name for file in run.adapter_dir.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md"}  # fmt: skip
    assert ModelCard.load(run.adapter_dir / "README.md").content == model_card(run, bundle, RESULTS)


def test_a_card_that_cannot_be_written_costs_one_line(bundle, tmp_path, caplog):
    """The training is done by then: it must not end as a failed one."""
    run = trained(bundle, tmp_path)
    (run.adapter_dir / "README.md").mkdir(parents=True)
    with caplog.at_level(logging.INFO, "whisper"):
        write_card(run, bundle, RESULTS)
    assert [message for message in caplog.messages if "model card" in message] == caplog.messages
    assert len(caplog.messages) == 1


def test_a_training_leaves_card_and_curves(mini_bundle, tmp_path):
    """The card is written when the weights are replaced no more."""
    script("train_offline.py", "--bundle-dir", mini_bundle, "--output-dir", tmp_path, "--run-name", "night",
           "--max-steps", 4, "--eval-steps", 2, "--generation-max-length", 8, "--logging-steps", 1,
           "--dataloader-num-workers", 0, check=True)  # fmt: skip
    run = Run(tmp_path / "night")
    card = ModelCard.load(run.adapter_dir / "README.md", ignore_metadata_errors=False)
    best = next(line for line in read_metrics(run) if line["step"] == run.best["step"] and "eval_cer" in line)
    assert [result.metric_value for result in card.data.eval_results] == [
        round(best["eval_cer"], 4), round(best["eval_wer"], 4)]  # fmt: skip
    assert f"step {run.best['step']} of 4" in card.text
    assert (run.path / "curves.png").is_file()
    assert str(tmp_path) not in card.content
