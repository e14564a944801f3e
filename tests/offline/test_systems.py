"""Systems: whatever folder holds a Whisper can be measured, and one that does not is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from asr.offline.decoding import Transcriber
from asr.offline.runs import Run, finish_run, start_run
from asr.offline.systems import Opener, Speaking, System, find_systems
from asr.offline.whisper import attach_lora, load_adapter, load_whisper, save_weights
from asr.shared.bundle import Bundle, open_bundle
from asr.shared.cli import parse
from asr.shared.processor import load_processor
from config import Decoding, Device, Lora, TrainOffline, UseRuns
from tests.offline.test_decoding import noise
from tests.offline.test_greedy import CPU
from utils import UserError

DECODING = Decoding(generation_max_length=16)


@pytest.fixture(scope="module")
def bundle(mini_bundle) -> Bundle:
    return open_bundle(mini_bundle)


@pytest.fixture(scope="module")
def runs(bundle, tmp_path_factory) -> Path:
    """Two finished runs: an adapter of trimmed windows, and a whole model of packed ones."""
    folder = tmp_path_factory.mktemp("systems") / "runs"
    for name, flags in (("adapter-run", ["--audio-layout", "trimmed"]), ("whole-run", ["--method", "full"])):
        given = ["--bundle-dir", str(bundle.path), "--output-dir", str(folder), "--run-name", name, *flags]
        config = parse(TrainOffline, given)[0]
        run = start_run(config, bundle)
        model = load_whisper(bundle.model_dir, CPU)
        if name == "adapter-run":
            model = attach_lora(model, Lora())
        torch.manual_seed(1)
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            torch.nn.init.normal_(parameter, std=0.1)
        save_weights(model, run.weights_dir, bundle.base_name)
        finish_run(run, {})
    return folder


@pytest.fixture
def opener() -> Opener:
    return Opener(Device(cuda_visible_devices=""), DECODING, Speaking("Korean", "transcribe"))


def texts(transcriber: Transcriber) -> list[str]:
    transcriber.trimmed = False
    return transcriber.transcribe([noise(2, seed) for seed in range(3)])


def test_runs_are_measured_beside_their_base(bundle, runs):
    systems = find_systems(UseRuns(runs, (Path("adapter-run"), Path("whole-run"))), bundle)
    assert [(s.name, s.kind, s.window) for s in systems] == [
        ("base", "base", "padded"),
        ("adapter-run", "lora", "trimmed"),
        ("whole-run", "full", "padded"),
    ]
    assert [s.run_dir for s in systems] == [None, runs / "adapter-run", runs / "whole-run"]


def test_a_single_run_is_the_tuned_one(bundle, runs):
    """Of none that is named the newest, as the other scripts take it."""
    assert [s.name for s in find_systems(UseRuns(runs, (Path("whole-run"),)), bundle)] == ["base", "tuned"]
    newest = find_systems(UseRuns(runs), bundle)[1]
    assert (newest.name, newest.run_dir) == ("tuned", runs / "whole-run")


def test_every_kind_writes_what_its_weights_write(bundle, runs, opener, tmp_path):
    """Base, adapter (merged for the time), whole model, adapter alone and a plain folder, each by another way."""
    adapter = shutil.copytree(runs / "adapter-run" / "adapter", tmp_path / "mine")
    plain = shutil.copytree(bundle.model_dir, tmp_path / "plain")
    use = UseRuns(runs, (Path("adapter-run"), Path("whole-run")), (adapter, plain))
    found = {}
    for system in find_systems(use, bundle):
        with opener.open(system) as transcriber:
            found[system.name] = texts(transcriber)

    def expected(model) -> list[str]:
        processor = load_processor(bundle.model_dir, "Korean", "transcribe")
        return texts(Transcriber.of(model, processor, CPU, DECODING))

    tuned = expected(load_adapter(load_whisper(bundle.model_dir, CPU), adapter))
    assert found["adapter-run"] == found["mine"] == tuned
    assert found["base"] == found["plain"] == expected(load_whisper(bundle.model_dir, CPU))
    assert found["whole-run"] == expected(load_whisper(runs / "whole-run" / "model", CPU))
    assert len({tuple(each) for each in found.values()}) == 3, "models that write the same would prove nothing"


def test_an_adapter_in_its_run_keeps_the_window_of_its_training(bundle, runs, opener, tmp_path):
    inside = runs / "adapter-run" / "adapter"
    outside = shutil.copytree(inside, tmp_path / "adapter")
    systems = find_systems(UseRuns(runs, (), (inside, outside)), bundle)
    assert [(s.name, s.window) for s in systems] == [("adapter", "trimmed"), ("adapter-2", "padded")]
    for system in systems:
        with opener.open(system) as transcriber:
            assert transcriber.trimmed is (system.window == "trimmed"), "and is opened with it"


def test_weights_of_other_content_are_another_system(bundle, tmp_path):
    """What is kept of a decoding belongs to these bytes, wherever they lie."""
    copies = [shutil.copytree(bundle.model_dir, tmp_path / name) for name in ("one", "two")]
    with open(copies[1] / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    one, two = (system.weights for system in find_systems(UseRuns(model=tuple(copies)), None))
    assert {name for name in one if one[name] != two[name]} == {"model.safetensors"}


def test_an_adapter_of_another_base_is_refused(bundle, runs, opener, tmp_path):
    """PEFT would leave the layers that it finds no weights for as they are, and measure the base."""
    from safetensors.torch import load_file, save_file

    adapter = shutil.copytree(runs / "adapter-run" / "adapter", tmp_path / "strange")
    tensors = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("decoder.layers.0", "decoder.layers.7"): tensor for name, tensor in tensors.items()}
    save_file(renamed, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    (system,) = find_systems(UseRuns(model=(adapter,)), bundle)
    with pytest.raises(UserError, match=r"strange does not fit the bundle's model: .*layers\.0.* is in only one"), \
            opener.open(system):  # fmt: skip
        pass


def test_what_is_no_model_is_refused_in_a_line(bundle, runs, opener, tmp_path, mini_model):
    def refused(*paths: Path, of: Bundle | None = None) -> str:
        with pytest.raises(UserError) as error:
            find_systems(UseRuns(model=paths), of)
        return str(error.value)

    assert "nothing is fetched here, so name a local one" in refused(Path("openai/whisper-small"))
    (tmp_path / "empty").mkdir()
    assert "a Whisper has a config.json, an adapter an adapter_config.json" in refused(tmp_path / "empty")
    assert f"is a run: give it as --run {runs / 'whole-run'}" in refused(runs / "whole-run")
    other = shutil.copytree(mini_model, tmp_path / "other")
    settings = json.loads((other / "config.json").read_text(encoding="utf-8")) | {"model_type": "bert"}
    (other / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert "is no Whisper: its config.json names another model_type" in refused(other)
    (other / "config.json").write_text("{", encoding="utf-8")
    assert "config.json cannot be read" in refused(other)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(mini_model / "config.json", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"pickle")
    assert "has no .safetensors" in refused(pickled)
    bare = shutil.copytree(mini_model, tmp_path / "bare", ignore=shutil.ignore_patterns("tok*", "vocab*"))
    (system,) = find_systems(UseRuns(model=(bare,)), None)
    with pytest.raises(UserError, match=r"bare has no tokenizer\.json"), opener.open(system):
        pass
    old = tmp_path / "old-adapter"
    old.mkdir()
    (old / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    assert "has no adapter_model.safetensors" in refused(old, of=bundle)
    assert "is an adapter: give the --bundle-dir with its base" in refused(runs / "adapter-run" / "adapter")
    with pytest.raises(UserError, match="runs are measured beside their base: give its --bundle-dir"):
        find_systems(UseRuns(), None)


def test_an_adapter_of_another_kind_or_base_is_refused(bundle, runs, tmp_path):
    """Only LoRA's weights are known to be where they belong, and a run tells which base it was trained on."""
    folder = shutil.copytree(runs, tmp_path / "runs") / "adapter-run"
    config = folder / "adapter" / "adapter_config.json"
    right = config.read_text(encoding="utf-8")
    config.write_text(right.replace('"LORA"', '"LOHA"'), encoding="utf-8")
    with pytest.raises(UserError, match="is an adapter of the kind LOHA: LoRA alone is measured"):
        find_systems(UseRuns(model=(folder / "adapter",)), bundle)
    config.write_text(right, encoding="utf-8")
    record = Run(folder).record | {"base_model_sha256": {"model/model.safetensors": "0"}}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match="was trained on another base than"):
        find_systems(UseRuns(model=(folder / "adapter",)), bundle)


@pytest.mark.parametrize("change", ["missing", "renamed"])
def test_weights_that_are_not_all_there_are_refused(opener, tmp_path, mini_model, change):
    """transformers would draw them at random, without a word, and others in the next session."""
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(mini_model, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    if change == "missing":
        del tensors["model.decoder.layers.0.fc1.weight"]
    else:
        tensors = {f"base_model.{name}": tensor for name, tensor in tensors.items()}
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    (system,) = find_systems(UseRuns(model=(broken,)), None)
    with pytest.raises(UserError, match=r"broken is no whole Whisper: model.* is missing"), opener.open(system):
        pass


def test_no_two_systems_share_a_name(tmp_path, mini_model):
    """Not even where one is called like the second of another."""
    copies = [shutil.copytree(mini_model, tmp_path / name) for name in ("x/w", "w-2", "y/w")]
    assert [system.name for system in find_systems(UseRuns(model=tuple(copies)), None)] == ["w", "w-2", "w-3"]


def test_all_run_in_one_format_beside_a_fully_trained_model(monkeypatch):
    """On a GPU the base would be 8 bit, and the gain would be told with what that costs."""
    asked = []
    monkeypatch.setattr("asr.offline.systems.choose_precision", lambda device, method: asked.append(method) or CPU)
    base, tuned = (System("a", kind, Path(), Path()) for kind in ("base", "full"))
    for whole in (True, False):
        opener = Opener(Device(), DECODING, Speaking("Korean", "transcribe"), whole)
        for system in (base, tuned, base):
            opener.speaking_as(Speaking("English", "transcribe")).precision(system)
            opener.precision(system)
    assert asked == ["full", "lora", "full"], "each is chosen, and told, once"


def test_a_damaged_model_is_named(opener, tmp_path, mini_model):
    broken = shutil.copytree(mini_model, tmp_path / "broken")
    with open(broken / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    (system,) = find_systems(UseRuns(model=(broken,)), None)
    with pytest.raises(UserError, match="broken cannot be opened"), opener.open(system):
        pass


def test_a_run_that_did_not_finish_is_refused(bundle, runs, tmp_path):
    folder = shutil.copytree(runs, tmp_path / "runs")
    record = Run(folder / "whole-run").record | {"status": "running"}
    (folder / "whole-run" / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match="its training did not finish"):
        find_systems(UseRuns(folder, (Path("whole-run"),)), bundle)
