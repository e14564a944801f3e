"""Systems: what an evaluation compares, namely the bundle's base, runs, and any other model in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from asr.offline.ctranslate import CTranslate2Writer, formats_of, is_ctranslate2
from asr.offline.decoding import Transcriber
from asr.offline.precision import Precision, choose_precision
from asr.offline.results import told_apart
from asr.offline.runs import Run, find_run, model_fingerprint
from asr.shared.bundle import Bundle
from asr.shared.checksums import digests_of
from asr.shared.processor import load_tokenizer
from config import Decoding, Device, UseRun, UseRuns
from utils import UserError, log

if TYPE_CHECKING:
    from transformers import WhisperTokenizer

BASE, TUNED = "base", "tuned"
ADAPTER = "adapter_config.json"
ENGINES = {"transformers": ("torch", "transformers", "peft", "bitsandbytes"), "ctranslate2": ("ctranslate2",)}
# What of a folder, beside .safetensors, decides what its model writes.
DECIDING = {"config.json", "generation_config.json", "adapter_config.json", "model.bin", "tokenizer.json"}
DECIDING |= {"tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"}
DECIDING |= {"vocabulary.json", "vocabulary.txt"}


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
    """Opens systems, all that transformers runs in the same formats.

    Args:
        device: as the user wishes.
        decoding: batch size and length limit.
        speaking: language and task.
        whole: a fully trained model is among them, which is not quantised, and so nothing is: else its gain would be
            told with what 8 bit costs the others.
    """

    def __init__(self, device: Device, decoding: Decoding, speaking: Speaking, whole: bool = False) -> None:
        self.device, self.decoding, self.speaking, self.whole = device, decoding, speaking, whole
        # By method; one for all that speak other languages, so that each choice is told once.
        self._chosen: dict[str, Precision] = {}

    def precision(self, system: System) -> Precision:
        """Return the formats of a system that transformers runs."""
        method = "full" if self.whole or system.kind == "full" else "lora"
        if method not in self._chosen:
            self._chosen[method] = choose_precision(self.device, method)
        return self._chosen[method]

    def speaking_as(self, speaking: Speaking) -> Opener:
        """Return one for another language or task."""
        other = copy(self)
        other.speaking = speaking
        return other

    def describe(self, system: System) -> dict[str, Any]:
        """Return what a system is and how it decodes, for the record."""
        return {"kind": system.kind, "model": system.called, **self.conditions(system)}

    def conditions(self, system: System) -> dict[str, Any]:
        """Return everything that the texts hang on beside weights, windows and audio."""
        formats = formats_of(self.device.quantization)
        if system.engine == "transformers":
            formats = self.precision(system).describe()
        return {
            "engine": {name: metadata.version(name) for name in ENGINES[system.engine]},
            **formats,
            "language": self.speaking.language.lower(),
            "task": self.speaking.task,
            "decoding": {
                "search": "greedy",
                "batch_size": self.decoding.per_device_eval_batch_size,
                "max_length": self.decoding.generation_max_length,
            },
        }

    @contextmanager
    def open(self, system: System) -> Iterator[Transcriber]:
        """Give the system's transcriber, with its own window.

        Once nobody holds it any more, `free_memory` gives its memory back.

        Raises:
            UserError: it cannot be opened.
        """
        log.info("loading %s", system.name if system.name == system.called else f"{system.name} ({system.called})")
        try:
            opened = self._opened(system)
        # Damaged files surface as many kinds of errors.
        except (OSError, ValueError, RuntimeError, AttributeError, KeyError, TypeError, SafetensorError) as error:
            told = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{system.adapter_dir or system.model_dir} cannot be opened: {told}") from None
        yield opened

    def _opened(self, system: System) -> Transcriber:
        most_tokens = self.decoding.generation_max_length
        speaking, trimmed = (self.speaking.language, self.speaking.task), system.window == "trimmed"
        if system.engine == "ctranslate2":
            writer = CTranslate2Writer(system.model_dir, *speaking, self.device.quantization, most_tokens)
            return Transcriber(writer, self.decoding, trimmed)
        # Neither transformers' models nor PEFT are there where CTranslate2 does it: importing them takes seconds.
        from asr.offline.whisper import load_adapter, load_whisper
        from asr.offline.whisper_writer import WhisperWriter

        precision = self.precision(system)
        model: Any = load_whisper(system.model_dir, precision)
        if system.adapter_dir is not None:
            model = load_adapter(model, system.adapter_dir)
            # In float32 the sum is the same to 1e-6, and saves two products a layer.
            if precision.quantization == "none" and not precision.autocast:
                model = model.merge_and_unload()
        tokenizer = _tokenizer(system.tokenizer_dir, *speaking)
        return Transcriber(WhisperWriter(model, tokenizer, precision, most_tokens), self.decoding, trimmed)


def needs_bundle(use: UseRuns) -> bool:
    """Tell whether the flags name something that a bundle holds: the base of runs, or that of an adapter."""
    return bool(use.run) or not use.model or any((path / ADAPTER).is_file() for path in use.model)


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
    if (path / ADAPTER).is_file():
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
    if _read(path / "config.json").get("model_type") != "whisper":
        raise UserError(f"--model {path} is no Whisper: its config.json names another model_type")
    if not any(path.glob("*.safetensors")):
        raise UserError(f"--model {path} has no .safetensors: save it with save_pretrained, or convert its weights")
    return System(name, "whisper", path, path, "padded", None, _digests(path), path.name)


def _adapter(path: Path, name: str, bundle: Bundle | None) -> System:
    if not (path / "adapter_model.safetensors").is_file():
        raise UserError(f"--model {path} has no adapter_model.safetensors: save the adapter with save_pretrained")
    kind = _read(path / ADAPTER).get("peft_type")
    if kind != "LORA":
        raise UserError(f"--model {path} is an adapter of the kind {kind}: LoRA alone is measured")
    if bundle is None:
        raise UserError(f"--model {path} is an adapter: give the --bundle-dir with its base, or merge it into its base")
    record = Run(path.parent).record
    base = record.get("base_model_sha256")
    if base is not None and base != model_fingerprint(bundle):
        raise UserError(f"--model {path} was trained on another base than {bundle.model_dir}: give its --bundle-dir")
    window = "trimmed" if record.get("audio_layout") == "trimmed" else "padded"
    called = f"{bundle.base_name} + {path.name}"
    weights = {**_listed(bundle), **_digests(path)}
    return System(name, "adapter", bundle.model_dir, bundle.model_dir, window, path, weights, called)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is no JSON object")
    return content


def _told_apart(systems: Sequence[System]) -> list[System]:
    """Give a number to those whose name others have, too."""
    names = told_apart([system.name for system in systems])
    return [replace(system, name=name) for system, name in zip(systems, names, strict=True)]


def _tokenizer(folder: Path, language: str, task: str) -> WhisperTokenizer:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(
            f"{folder} has no tokenizer.json: copy the files of the tokenizer it was trained with beside it"
        )
    return load_tokenizer(folder, language, task)


def _listed(bundle: Bundle) -> dict[str, str]:
    """Return the hashes of the bundle's model, which were verified when it was opened."""
    files = {name: entry["sha256"] for name, entry in bundle.manifest["files"].items()}
    return {name: digest for name, digest in files.items() if name.startswith("model/") and _counts(Path(name))}


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and _counts(file))
    digests = digests_of(files, f"reading {folder.name}", sum(file.stat().st_size for file in files))
    for file, digest in zip(files, digests, strict=True):
        if isinstance(digest, OSError):
            raise UserError(f"{file} cannot be read: {digest.strerror}")
    return {file.name: str(digest) for file, digest in zip(files, digests, strict=True)}


def _counts(file: Path) -> bool:
    """Whether a file of a model decides what it writes."""
    return file.suffix == ".safetensors" or file.name in DECIDING
