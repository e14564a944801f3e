"""Export: other tools open what it writes, hear in it what the run hears, and it says so where they do not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

from asr.offline import export
from asr.offline.decoding import Transcriber
from asr.offline.export import export_run
from asr.offline.runs import Run, finish_run, start_run
from asr.offline.whisper import attach_lora, load_adapter, load_whisper, save_weights
from asr.shared.audio import load_audio
from asr.shared.bundle import Bundle, open_bundle, seal, unseal
from asr.shared.cli import parse
from asr.shared.processor import load_processor
from asr.shared.text import clean_text
from config import Decoding, Inference, Lora, TrainOffline
from tests.conftest import DEMO_CORPUS, DEMO_MODEL, script
from tests.offline.test_greedy import CPU
from utils import UserError, WhisperError, error_boundary

CLIPS = [DEMO_CORPUS / "clips" / f"common_voice_ko_test_{number:04}.mp3" for number in range(2)]
# Runs where nothing of ours can be imported; its folder, a file with windows and one for the results are named.
PLAIN = """
import sys
import numpy as np
import torch
from transformers import AutoProcessor, WhisperForConditionalGeneration
assert not {"asr", "utils", "config"} & sys.modules.keys()
given = np.load(sys.argv[2])
model = WhisperForConditionalGeneration.from_pretrained(sys.argv[1]).eval()
assert AutoProcessor.from_pretrained(sys.argv[1]).feature_extractor.feature_size == model.config.num_mel_bins
with torch.no_grad():
    features, tokens = torch.from_numpy(given["features"]), torch.from_numpy(given["tokens"])
    logits = model(input_features=features, decoder_input_ids=tokens).logits
    ids = model.generate(features, max_new_tokens=12)
np.savez(sys.argv[3], logits=logits.numpy(), ids=ids.numpy(), dtype=str(model.dtype))
"""


@dataclass(frozen=True)
class Case:
    """A run with its bundle."""

    bundle: Bundle
    run: Run

    @property
    def merged(self) -> Path:
        return self.run.path / "export" / "merged"

    @property
    def converted(self) -> Path:
        return self.run.path / "export" / "ctranslate2"

    @property
    def parity(self) -> dict[str, Any]:
        return json.loads((self.run.path / "export" / "parity.json").read_text(encoding="utf-8"))

    @property
    def flags(self) -> list[str]:
        return ["--bundle-dir", str(self.bundle.path), "--run", str(self.run.path), "--cuda-visible-devices", ""]

    def export(self, what: str, *flags: object) -> None:
        export_run(parse(Inference, ["--export", what, *self.flags, "--parity-clips", "0", *map(str, flags)])[0])

    def copy(self, folder: Path) -> Case:
        """Return the same run elsewhere, with nothing exported yet."""
        run = shutil.copytree(self.run.path, folder / self.run.path.name, ignore=shutil.ignore_patterns("export"))
        return Case(self.bundle, Run(run))


def bundle_of(mini_bundle: Path, model: Path, folder: Path) -> Bundle:
    """Seal a bundle with the mini bundle's clips and another model."""
    path = shutil.copytree(mini_bundle, folder / "bundle")
    manifest = open_bundle(mini_bundle).manifest
    unseal(path)
    shutil.rmtree(path / "model")
    shutil.copytree(model, path / "model")
    return seal(path, model.name, manifest["config"], manifest["data"])


def trained(bundle: Bundle, folder: Path, *flags: str) -> Case:
    """Write a finished run whose weights do something, and not too much."""
    given = ["--bundle-dir", str(bundle.path), "--output-dir", str(folder / "runs"), "--run-name", "mine", *flags]
    config = parse(TrainOffline, given)[0]
    run = start_run(config, bundle)
    full = config.lora.method == "full"
    model: Any = load_whisper(bundle.model_dir, CPU, full_weights=full)
    model = model if full else attach_lora(model, Lora())
    torch.manual_seed(1)
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        parameter.data += 0.04 * torch.randn_like(parameter) * (0.1 if full else 1)
    save_weights(model, run.weights_dir, bundle.base_name)
    finish_run(run, {})
    return Case(bundle, run)


@pytest.fixture(scope="module")
def case(mini_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """An adapter for the demo's Whisper, whose weights are float16, trained with trimmed windows."""
    folder = tmp_path_factory.mktemp("export")
    return trained(bundle_of(mini_bundle, DEMO_MODEL, folder), folder, "--audio-layout", "trimmed")


@pytest.fixture(scope="module")
def exported(case: Case) -> SimpleNamespace:
    """The same, exported in both formats by the command."""
    pytest.importorskip("ctranslate2")
    done = script("inference.py", "--export", "both", *case.flags, "--parity-clips", 2, check=True)
    return SimpleNamespace(case=case, out=done.stdout, err=done.stderr)


@pytest.fixture(scope="module")
def whole(mini_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A fully tuned mini Whisper, of windows of 5 s."""
    return trained(open_bundle(mini_bundle), tmp_path_factory.mktemp("whole"), "--method", "full")


def plain_transformers(model: Path, folder: Path) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Return what plain transformers makes of random windows, elsewhere and alone, and these windows and tokens."""
    elsewhere = shutil.copytree(model, folder / "elsewhere")
    torch.manual_seed(0)
    features, tokens = torch.randn(2, 80, 3000), torch.randint(0, 2421, (2, 9))
    np.savez(folder / "given.npz", features=features.numpy(), tokens=tokens.numpy())
    subprocess.run(
        [sys.executable, "-I", "-c", PLAIN, elsewhere, folder / "given.npz", folder / "found.npz"],
        check=True, cwd=folder, env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(folder)},
    )  # fmt: skip
    return np.load(folder / "found.npz"), features, tokens


def adapted(case: Case) -> PeftModel:
    """Base and adapter, not merged."""
    base = WhisperForConditionalGeneration.from_pretrained(case.bundle.model_dir, dtype=torch.float32)
    return PeftModel.from_pretrained(base, case.run.adapter_dir).eval()


class Multilingual:
    """CTranslate2's model with the demo's short vocabulary, which it takes for that of an English model."""

    is_multilingual = True

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def text_of(model: Any, case: Case) -> str:
    processor = load_processor(case.bundle.model_dir, "Korean", "transcribe")
    return Transcriber.of(model, processor, CPU, Decoding()).transcribe([load_audio(CLIPS[0])])[0]


# What is written


def test_plain_transformers_opens_what_is_merged(exported: SimpleNamespace, tmp_path: Path) -> None:
    """Without our code, in another folder, told no language: the logits and the text of base and adapter."""
    found, features, tokens = plain_transformers(exported.case.merged, tmp_path)
    model = adapted(exported.case)
    with torch.no_grad():
        logits = model(input_features=features, decoder_input_ids=tokens).logits.numpy()
        ids = model.generate(features, language="korean", task="transcribe", max_new_tokens=12).numpy()
        with model.disable_adapter():
            base = model(input_features=features, decoder_input_ids=tokens).logits.numpy()
    assert np.abs(found["logits"] - logits).max() < 1e-5 * np.abs(logits).max()
    assert np.array_equal(found["ids"], ids)
    assert np.abs(base - logits).max() > 0.1, "the adapter does something"
    assert found["dtype"] == "torch.float32", "the base's float16 would round what is merged"


def test_it_is_told_language_and_task(exported: SimpleNamespace) -> None:
    generation = json.loads((exported.case.merged / "generation_config.json").read_text(encoding="utf-8"))
    assert (generation["language"], generation["task"]) == ("korean", "transcribe")


def test_faster_whisper_writes_what_the_run_writes(exported: SimpleNamespace) -> None:
    faster_whisper = pytest.importorskip("faster_whisper")
    case = exported.case
    model = faster_whisper.WhisperModel(str(case.converted), device="cpu", compute_type="float32", cpu_threads=1)
    model.model = Multilingual(model.model)
    # By default it bars the first token of " ♪", which in the demo's short vocabulary is the space.
    plain: dict[str, Any] = {"suppress_tokens": [], "no_speech_threshold": None, "log_prob_threshold": None}
    plain |= {"without_timestamps": True, "beam_size": 1, "temperature": 0}
    # Behind the end of a recording it gives the model zeros, where Whisper's own features have those of silence.
    waveform = np.pad(load_audio(CLIPS[0]), (0, 480_000))[:480_000]
    segments, _ = model.transcribe(waveform, language="ko", **plain)
    heard = clean_text("".join(segment.text for segment in segments))
    base = load_whisper(case.bundle.model_dir, CPU)
    of_the_base = text_of(base, case)
    assert heard == text_of(load_whisper(case.merged, CPU), case)
    assert heard == text_of(load_adapter(base, case.run.adapter_dir), case)
    assert heard != of_the_base, "the adapter does something"


def test_the_outcome_is_printed_and_kept(exported: SimpleNamespace) -> None:
    lines = exported.out.splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        "merged: 2 of 2 texts are the same", "ctranslate2: 2 of 2 texts are the same"
    ]  # fmt: skip
    assert all(line.endswith("difference +0.0000") for line in lines)
    found = exported.case.parity
    assert {name: (one["passed"], one["different"], one["clips"]) for name, one in found.items()} == {
        "merged": (True, [], 2),
        "ctranslate2": (True, [], 2),
    }
    assert found["merged"]["cer"]["run"] == found["merged"]["cer"]["export"] > 0
    assert found["ctranslate2"]["export"]["compute_type"] == "float32", "a CPU has no float16"


def test_a_run_of_short_windows_says_what_tools_that_pad_will_get(exported: SimpleNamespace) -> None:
    case = exported.case
    command = f"python evaluate_model.py --run {case.run.path} --bundle-dir {case.bundle.path}"
    assert command in exported.err
    assert "trained with trimmed windows" in exported.err


def test_a_vocabulary_that_tools_take_for_english_is_told(exported: SimpleNamespace) -> None:
    """The demo's, which is for nothing but the demo."""
    assert "warning: this model has 2,421 tokens, and CTranslate2 takes fewer than 51,865" in exported.err


def test_a_whisper_of_128_mel_bins(mini_bundle: Path, mini_model: Path, tmp_path: Path) -> None:
    """Tools that know 80 alone must read the number in preprocessor_config.json."""
    faster_whisper = pytest.importorskip("faster_whisper")
    model = shutil.copytree(mini_model, tmp_path / "mini-128")
    config = WhisperConfig.from_pretrained(mini_model, num_mel_bins=128, max_source_positions=1500)
    torch.manual_seed(0)
    WhisperForConditionalGeneration(config).save_pretrained(model)
    shutil.copy(mini_model / "generation_config.json", model)
    features = json.loads((model / "preprocessor_config.json").read_text()) | {"feature_size": 128}
    (model / "preprocessor_config.json").write_text(json.dumps(features))
    (model / "processor_config.json").write_text(json.dumps({"feature_extractor": features}))
    case = trained(bundle_of(mini_bundle, model, tmp_path), tmp_path)
    case.export("both", "--export-quantization", "float32", "--parity-clips", 2, "--generation-max-length", 16)
    assert [one["passed"] for one in case.parity.values()] == [True, True]
    for folder in (case.merged, case.converted):
        assert json.loads((folder / "preprocessor_config.json").read_text())["feature_size"] == 128
    plain = WhisperForConditionalGeneration.from_pretrained(case.merged).eval()
    given = {"input_features": torch.randn(1, 128, 3000), "decoder_input_ids": torch.randint(0, 2421, (1, 9))}
    with torch.no_grad():
        assert torch.allclose(plain(**given).logits, adapted(case)(**given).logits, atol=1e-5)
    opened = faster_whisper.WhisperModel(str(case.converted), device="cpu", compute_type="int8", cpu_threads=1)
    assert opened.model.n_mels == opened.feature_extractor.mel_filters.shape[0] == 128
    list(opened.transcribe(load_audio(CLIPS[0]), language="ko", beam_size=1, temperature=0)[0])


def test_int8_is_measured_as_int8(exported: SimpleNamespace, tmp_path: Path) -> None:
    """Whatever the run itself is decoded with. Alone, it leaves no merged model behind."""
    case = exported.case.copy(tmp_path)
    flags = ("--export-quantization", "int8", "--parity-clips", 1, "--parity-limit", 1, "--quantization", "none")
    case.export("ctranslate2", *flags)
    assert case.parity["ctranslate2"]["export"]["compute_type"] == "int8_float32"
    sizes = [(one.converted / "model.bin").stat().st_size for one in (case, exported.case)]
    assert sizes[0] < 0.8 * sizes[1]
    assert sorted(path.name for path in (case.run.path / "export").iterdir()) == ["ctranslate2", "parity.json"]


def test_a_fully_tuned_run(whole: Case) -> None:
    whole.export("merged", "--parity-clips", 4, "--generation-max-length", 16)
    tuned, merged = (load_file(folder / "model.safetensors") for folder in (whole.run.model_dir, whole.merged))
    assert tuned.keys() == merged.keys()
    assert all(torch.equal(tuned[name], merged[name]) for name in tuned)
    assert whole.parity["merged"]["same"] == 4
    processor = load_processor(whole.merged, "Korean", "transcribe")
    assert processor.tokenizer.get_vocab() == WhisperTokenizer.from_pretrained(DEMO_MODEL).get_vocab()


def test_what_older_repositories_have(whole: Case, tmp_path: Path) -> None:
    """Word lists, of which tools that read tokenizer.json alone find nothing; and a prompt for another language."""
    path = shutil.copytree(whole.bundle.path, tmp_path / "bundle")
    model = json.loads((path / "model" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (path / "model" / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (path / "model" / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]), encoding="utf-8")
    (path / "model" / "tokenizer.json").unlink()
    generation = json.loads((path / "model" / "generation_config.json").read_text(encoding="utf-8"))
    old = json.dumps(generation | {"forced_decoder_ids": [[1, None], [2, 913]]})
    (path / "model" / "generation_config.json").write_text(old, encoding="utf-8")
    (tmp_path / "merged").mkdir()
    export.write_merged(whole.run, replace(whole.bundle, path=path), tmp_path / "merged")
    expected, found = (WhisperTokenizer.from_pretrained(folder) for folder in (path / "model", tmp_path / "merged"))
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    assert found("오늘 날씨가 좋네요").input_ids == expected("오늘 날씨가 좋네요").input_ids
    assert "forced_decoder_ids" not in (tmp_path / "merged" / "generation_config.json").read_text(encoding="utf-8")


# Whole or not at all


def test_the_same_command_replaces(whole: Case, tmp_path: Path) -> None:
    """What is left of the old one would be taken for a part of the new one; its figures, too."""
    case = whole.copy(tmp_path)
    case.export("merged", "--parity-clips", 1, "--generation-max-length", 8)
    first = {file.name: file.read_bytes() for file in case.merged.iterdir()}
    (case.merged / "model.safetensors").write_bytes(b"old")
    (case.merged / "left.txt").touch()
    case.export("merged")
    assert {file.name: file.read_bytes() for file in case.merged.iterdir()} == first
    assert case.parity == {}


@pytest.mark.parametrize("step", ["write_merged", "convert"])
def test_what_is_interrupted_leaves_nothing_half(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    pytest.importorskip("ctranslate2")
    mine = case.copy(tmp_path)
    mine.converted.mkdir(parents=True)
    (mine.converted / "old").touch()
    # As a crash leaves it.
    (mine.merged.parent / ".merged.tmp").mkdir()
    done = getattr(export, step)

    def stopped(*given: Any) -> None:
        done(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(export, step, stopped)
    with pytest.raises(KeyboardInterrupt):
        mine.export("ctranslate2")
    assert [path.relative_to(mine.merged.parent).as_posix() for path in mine.merged.parent.rglob("*")] == [
        "ctranslate2", "ctranslate2/old"
    ]  # fmt: skip
    monkeypatch.undo()
    mine.export("ctranslate2")
    assert [path.name for path in mine.merged.parent.iterdir()] == ["ctranslate2"]
    assert not (mine.converted / "old").exists()


# Told


def test_an_export_that_writes_something_else_fails(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = case.copy(tmp_path)
    written = export.write_merged

    def altered(run: Run, bundle: Bundle, folder: Path) -> None:
        written(run, bundle, folder)
        weights = load_file(folder / "model.safetensors")
        weights["model.decoder.layer_norm.weight"] *= -1
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(export, "write_merged", altered)
    with pytest.raises(SystemExit) as end, error_boundary():
        case.export("merged", "--parity-clips", 2, "--generation-max-length", 32)
    assert end.value.code == 1
    captured = capsys.readouterr()
    found = case.parity["merged"]
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    for word in (f"{case.merged} has a CER of {found['cer']['export']:.4f}", "--parity-limit 0.005: it stays"):
        assert word in line
    assert f"difference {found['difference']:+.4f}" in captured.out
    assert not found["passed"]
    assert len(found["different"]) == 2 - found["same"] > 0
    assert found["different"][0].keys() == {"source_id", "reference", "run", "export"}
    assert (case.merged / "model.safetensors").is_file()


def test_a_better_one_fails_as_well(whole: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that is not its run is not what was measured."""
    case = whole.copy(tmp_path)
    monkeypatch.setattr(
        Transcriber, "transcribe_clips", lambda _, rows, title: rows["text"] if "merged" in title else ["가"]
    )
    with pytest.raises(WhisperError, match="further apart"):
        case.export("merged", "--parity-clips", 1)


def refused(case: Case, what: str, *flags: object) -> str:
    with pytest.raises(UserError) as raised:
        case.export(what, *flags)
    assert not (case.run.path / "export").exists()
    return str(raised.value)


def test_what_cannot_be_is_refused_before_anything_is_written(
    case: Case, whole: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = whole.copy(tmp_path)
    pytest.importorskip("ctranslate2")
    assert "windows of 30 s alone, and this model has 5 s" in refused(mine, "ctranslate2")
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(export.shutil, "disk_usage", lambda place: usage)
    assert "1.0 MB free, and 5" in refused(mine, "merged")
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert "needs the Python package ctranslate2: pip install" in refused(case.copy(tmp_path / "other"), "both")


def test_no_test_clips(mini_bundle: Path, whole: Case, tmp_path: Path) -> None:
    from datasets import DatasetDict, load_from_disk

    path = shutil.copytree(mini_bundle, tmp_path / "bundle")
    manifest = open_bundle(path).manifest
    unseal(path)
    splits = load_from_disk(str(mini_bundle / "data"))
    shutil.rmtree(path / "data")
    DatasetDict({"train": splits["train"]}).save_to_disk(str(path / "data"))
    bundle = seal(path, manifest["base_model"], manifest["config"], manifest["data"])
    case = Case(bundle, whole.copy(tmp_path).run)
    assert "--parity-clips 3: " in refused(case, "merged", "--parity-clips", 3)
    case.export("merged")
    assert case.merged.is_dir()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--export", "both", "a.mp3"], "--export both writes a model, no texts: leave out a.mp3"),
        (["--export", "merged", "--model", "folder"], "--export merged takes a trained run: give --run, not --model"),
        (["--export", "merged", "--export-quantization", "int8"], "--export-quantization is for --export ctranslate2"),
        (["--parity-clips", "-1"], "--parity-clips is -1"),
        (["--parity-limit", "nan"], "--parity-limit is nan"),
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse(Inference, flags)
