"""The choice of what transcribes: the system that the flags name, the engine that runs it, and the windows it hears."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import torch

from asr.offline.ctranslate import is_ctranslate2
from asr.offline.speech import Windowing
from asr.offline.systems import Opener, Speaking, System, find_systems, needs_bundle
from asr.shared.audio import SAMPLE_RATE
from asr.shared.bundle import Bundle, open_bundle
from config import Inference, UseRuns
from utils import UserError, log

# Of models that know short windows alone: so many times the mean of their training clips, and no less than this.
TIMES_MEAN, SHORTEST_WINDOW_S, WINDOW_S = 3, 5.0, 30.0


@dataclass(frozen=True)
class Choice:
    """What transcribes.

    Attributes:
        opener: opens it.
        system: the model.
        base: the model that it was trained from, where it is wanted and known.
        bundle: that the run was trained on, where one is needed.
        windowing: how recordings are cut for it.
    """

    opener: Opener
    system: System
    base: System | None
    bundle: Bundle | None
    windowing: Windowing


def choose(config: Inference, with_base: bool) -> Choice:
    """Return what the flags name.

    Args:
        with_base: both are to be heard side by side, so in one engine and one format.

    Raises:
        UserError: it is not there, or the engine that is asked for is not.
    """
    wanted, run = config.transcribing, config.use.run
    use = UseRuns(config.use.output_dir, (run,) if run else (), (wanted.model,) if wanted.model else ())
    bundle = open_bundle(config.bundle.bundle_dir) if needs_bundle(use) else None
    systems = find_systems(use, bundle)
    system, base = systems[-1], systems[0] if with_base and len(systems) > 1 else None
    speaking = Speaking(bundle.language, bundle.task) if bundle else Speaking("Korean", "transcribe")
    opener = Opener(config.device, config.decoding, speaking, system.kind == "full")
    engine = _with_engine(config, system, base, opener)
    return Choice(opener, engine, base, bundle, _windowing(system, bundle))


def _windowing(system: System, bundle: Bundle | None) -> Windowing:
    if system.window != "trimmed" or bundle is None:
        return Windowing(WINDOW_S, filled=True)
    train = bundle.manifest["data"]["splits"]["train"]
    mean_s = 3600 * train["hours"] / train["clips"]
    return Windowing(min(WINDOW_S, max(SHORTEST_WINDOW_S, TIMES_MEAN * mean_s)))


# Engines


def _with_engine(config: Inference, system: System, base: System | None, opener: Opener) -> System:
    """Return the system as the engine runs it that the flags ask for."""
    engine = config.transcribing.engine
    if engine == "transformers" or system.run_dir is None:
        return system
    trouble = _why_not(system)
    if engine == "ctranslate2":
        if trouble:
            raise UserError(f"--engine ctranslate2: {trouble}")
        return _export_of(system)
    # What differs must be the training, not the engine; and the export was compared in the format that it has.
    if base is not None or config.device.quantization != "auto" or not _export_of(system).model_dir.is_dir():
        return system
    trouble = trouble or (_fails(_export_of(system), opener) if torch.cuda.is_available() else "")
    if trouble:
        log.warning("transformers runs it and not CTranslate2: %s", trouble)
        return system
    return _export_of(system)


def _export_of(system: System) -> System:
    assert system.run_dir is not None
    folder = system.run_dir / "export" / "ctranslate2"
    return replace(
        system,
        kind="ctranslate2",
        model_dir=folder,
        tokenizer_dir=folder,
        adapter_dir=None,
        weights={},
        called=folder.name,
    )


def _why_not(system: System) -> str:
    """Return why a run's export cannot stand for it, or ""."""
    export = _export_of(system)
    folder, run_dir = export.model_dir, system.run_dir
    assert run_dir is not None
    again = f"python inference.py --export ctranslate2 --run {run_dir}"
    if not is_ctranslate2(folder):
        return f"{folder} is not there: {again}"
    trained = [*run_dir.glob("adapter/*.safetensors"), *run_dir.glob("model/*.safetensors")]
    if any(file.stat().st_mtime > (folder / "model.bin").stat().st_mtime for file in trained):
        return f"{folder} is older than the run: {again}"
    try:
        passed = json.loads((folder.parent / "parity.json").read_text(encoding="utf-8"))["ctranslate2"]["passed"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{folder} was not compared with the run: {again}"
    if not passed:
        return f"{folder} does not write what the run writes ({folder.parent / 'parity.json'})"
    if find_spec("ctranslate2") is None:
        return "the Python package ctranslate2 is missing: pip install -r requirements.txt"
    return ""


def _fails(system: System, opener: Opener) -> str:
    """Return why a model does not run here, or "": its libraries for a GPU are others than torch's."""
    try:
        with opener.open(system) as transcriber:
            transcriber.transcribe([np.zeros(SAMPLE_RATE, dtype=np.float32)])
    except (RuntimeError, UserError) as error:
        return str(error).splitlines()[0]
    return ""
