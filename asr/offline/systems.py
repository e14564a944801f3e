"""Systems: what an evaluation compares, namely the bundle's base, runs, and any other model in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import WhisperTokenizer

from asr.offline.ctranslate import CTranslate2Writer, is_ctranslate2
from asr.offline.decoding import Transcriber, WhisperWriter
from asr.offline.parts import free_memory
from asr.offline.precision import Precision, choose_precision
from asr.offline.runs import Run, find_run, model_fingerprint
from asr.offline.whisper import load_adapter, load_whisper
from asr.shared.bundle import Bundle
from asr.shared.checksums import digests_of, files_below
from asr.shared.processor import load_tokenizer
from config import Decoding, Device, UseRun, UseRuns
from utils import UserError, log

BASE, TUNED = "base", "tuned"
ENGINES = {"transformers": ("torch", "transformers", "peft", "bitsandbytes"), "ctranslate2": ("ctranslate2",)}
# What of a folder decides what its model writes.
WEIGHTS = (".safetensors", ".bin", ".json")


@dataclass(frozen=True)
class System:
    """A model that is measured.

    Attributes:
        name: what figures and reports call it.
        kind: base, lora, full, adapter, whisper or ctranslate2.
        model_dir: folder of the model, or of an adapter's base.
        tokenizer_dir: folder of its tokenizer, which a run has in its bundle.
        window: of its own: "trimmed" where it was trained so, else "padded".
        adapter_dir: of its adapter.
        weights: SHA-256 of every file that decides what it writes, by name.
        called: what the model is called, for reports.
        run_dir: folder of the run that it is.
    """

    name: str
    kind: str
    model_dir: Path
    tokenizer_dir: Path
    window: str = "padded"
    adapter_dir: Path | None = None
    weights: dict[str, str] = field(default_factory=dict, repr=False)
    called: str = ""
    run_dir: Path | None = None

    @property
    def engine(self) -> str:
        """Which library runs it."""
        return "ctranslate2" if self.kind == "ctranslate2" else "transformers"


@dataclass(frozen=True)
class Speaking:
    """The language of the speech as Whisper's tokenizer names it, and the task."""

    language: str
    task: str


class Opener:
    """Opens systems, one at a time, all in the same formats.

    Args:
        device: as the user wishes.
        decoding: batch size and length limit.
        speaking: language and task.
    """

    def __init__(self, device: Device, decoding: Decoding, speaking: Speaking) -> None:
        self.device, self.decoding, self.speaking = device, decoding, speaking
        self._precision: Callable[[str], Precision] = cache(lambda method: choose_precision(device, method))

    def describe(self, system: System) -> dict[str, Any]:
        """Return what a system is and how it decodes: all that its texts hang on, the window apart."""
        formats: dict[str, str] = {"quantization": self.device.quantization}
        if system.engine == "transformers":
            formats = self.precision(system).describe()
        return {
            "kind": system.kind,
            "model": system.called,
            "engine": {name: metadata.version(name) for name in ENGINES[system.engine]},
            **formats,
            "language": self.speaking.language,
            "task": self.speaking.task,
            "decoding": {
                "search": "greedy",
                "batch_size": self.decoding.per_device_eval_batch_size,
                "max_length": self.decoding.generation_max_length,
            },
        }

    def precision(self, system: System) -> Precision:
        """Return the formats of a system that transformers runs."""
        return self._precision("full" if system.kind == "full" else "lora")

    @contextmanager
    def open(self, system: System) -> Iterator[Transcriber]:
        """Give the system's transcriber; its memory is free again after the block.

        Raises:
            UserError: it cannot be opened.
        """
        log.info("loading %s", system.name if system.name == system.called else f"{system.name} ({system.called})")
        try:
            yield self._opened(system)
        finally:
            free_memory()

    def _opened(self, system: System) -> Transcriber:
        most_tokens = self.decoding.generation_max_length
        speaking = self.speaking.language, self.speaking.task
        if system.engine == "ctranslate2":
            writer = CTranslate2Writer(system.model_dir, *speaking, self.device.quantization, most_tokens)
            return Transcriber(writer, self.decoding)
        precision = self.precision(system)
        model: Any = _loaded(system.model_dir, precision)
        if system.adapter_dir is not None:
            model = load_adapter(model, system.adapter_dir)
            # In float32 the sum is the same to 1e-6, and saves two products a layer.
            if precision.quantization == "none" and not precision.autocast:
                model = model.merge_and_unload()
        tokenizer = _tokenizer(system.tokenizer_dir, *speaking)
        return Transcriber(WhisperWriter(model, tokenizer, precision, most_tokens), self.decoding)


def find_systems(use: UseRuns, bundle: Bundle | None) -> list[System]:
    """Return the systems that the flags name: the base and the runs, then the other models, in their order.

    Without any name it is the newest finished run. The base goes with runs alone.

    Args:
        use: which.
        bundle: whose base the runs were trained on; None where there is none.

    Raises:
        UserError: one is not there, is none that can be opened, or needs a bundle.
    """
    systems: list[System] = []
    if use.run or not use.model:
        if bundle is None:
            raise UserError("runs are measured beside their base: give its --bundle-dir")
        runs = [find_run(UseRun(use.output_dir, name), bundle) for name in use.run or (None,)]
        systems = [_base(bundle), *(_run(run, bundle, TUNED if len(runs) == 1 else run.path.name) for run in runs)]
    systems += [_folder(path, bundle) for path in use.model]
    return _told_apart(systems)


def _base(bundle: Bundle) -> System:
    window = bundle.manifest["config"].get("audio_layout")
    own = "trimmed" if window == "trimmed" else "padded"
    return System(BASE, "base", bundle.model_dir, bundle.model_dir, own, None, _listed(bundle), bundle.base_name)


def _run(run: Run, bundle: Bundle, name: str) -> System:
    window = "trimmed" if run.record["audio_layout"] == "trimmed" else "padded"
    weights, tokenizer_dir = {**_listed(bundle), **_digests(run.weights_dir)}, bundle.model_dir
    if run.record["settings"]["method"] == "full":
        return System(name, "full", run.model_dir, tokenizer_dir, window, None, weights, run.path.name, run.path)
    called = f"{bundle.base_name} + {run.path.name}"
    return System(name, "lora", tokenizer_dir, tokenizer_dir, window, run.adapter_dir, weights, called, run.path)


def _folder(path: Path, bundle: Bundle | None) -> System:
    """Return the system in a folder of the user's."""
    if not path.is_dir():
        raise UserError(f"--model {path}: there is no such folder; nothing is fetched here, so name a local one")
    name = path.resolve().name
    if (path / "adapter_config.json").is_file():
        return _adapter(path, name, bundle)
    if is_ctranslate2(path):
        return System(name, "ctranslate2", path, path, "padded", None, _digests(path), path.name)
    if (path / "run.json").is_file():
        raise UserError(f"--model {path} is a run: give it as --run {path}")
    if not (path / "config.json").is_file():
        raise UserError(
            f"--model {path}: a Whisper has a config.json, an adapter an adapter_config.json, and a model of "
            "CTranslate2 a model.bin; none of them is there"
        )
    if not any(path.glob("*.safetensors")):
        raise UserError(f"--model {path} has no .safetensors: save it with save_pretrained, or convert its weights")
    return System(name, "whisper", path, path, "padded", None, _digests(path), path.name)


def _adapter(path: Path, name: str, bundle: Bundle | None) -> System:
    if not (path / "adapter_model.safetensors").is_file():
        raise UserError(f"--model {path} has no adapter_model.safetensors: save the adapter with save_pretrained")
    if bundle is None:
        raise UserError(f"--model {path} is an adapter: give the --bundle-dir with its base, or merge it into its base")
    layout = Run(path.parent).record.get("audio_layout")
    window = "trimmed" if layout == "trimmed" else "padded"
    called = f"{bundle.base_name} + {path.name}"
    weights = {**_listed(bundle), **_digests(path)}
    return System(name, "adapter", bundle.model_dir, bundle.model_dir, window, path, weights, called)


def _told_apart(systems: Sequence[System]) -> list[System]:
    """Give a number to those whose name others have, too."""
    seen: Counter[str] = Counter()
    told = []
    for system in systems:
        seen[system.name] += 1
        number = seen[system.name]
        told.append(replace(system, name=f"{system.name}-{number}") if number > 1 else system)
    return told


def _loaded(folder: Path, precision: Precision) -> Any:
    try:
        return load_whisper(folder, precision)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be opened: {(str(error).splitlines() or [''])[0]}") from None


def _tokenizer(folder: Path, language: str, task: str) -> WhisperTokenizer:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(
            f"{folder} has no tokenizer.json: copy the files of the tokenizer it was trained with beside it"
        )
    return load_tokenizer(folder, language, task)


def _listed(bundle: Bundle) -> dict[str, str]:
    """Return the hashes of the bundle's model, which were verified when it was opened."""
    files = bundle.manifest["files"].items()
    weights = {name: entry["sha256"] for name, entry in files if name.startswith("model/") and name.endswith(WEIGHTS)}
    assert weights.keys() >= model_fingerprint(bundle).keys()
    return weights


def _digests(folder: Path) -> dict[str, str]:
    names, _ = files_below(folder, ["."])
    names = [name for name in names if name.endswith(WEIGHTS)]
    files = [folder / name for name in names]
    digests = digests_of(files, f"reading {folder.name}", sum(file.stat().st_size for file in files))
    for name, digest in zip(names, digests, strict=True):
        if isinstance(digest, OSError):
            raise UserError(f"{folder / name} cannot be read: {digest.strerror}")
    return dict(zip(names, map(str, digests), strict=True))
