"""Export: a run becomes a model that other tools open, a plain Whisper or one of CTranslate2."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

from transformers import WhisperTokenizer
from transformers.utils import logging as transformers_logging

from asr.offline.lock import sole_use
from asr.offline.parity import Parity
from asr.offline.runs import Run
from asr.offline.systems import find_systems
from asr.shared.bundle import Bundle, open_bundle
from asr.shared.merging import merge_run
from asr.shared.meter import in_bytes
from asr.shared.processor import mel_window
from asr.shared.weights import read_settings, tensors_of
from config import Inference, UseRuns
from utils import UserError, WhisperError, folder_made_whole, log, write_json

MERGED, CTRANSLATE2 = "merged", "ctranslate2"
TOKENIZER, FEATURES = "tokenizer.json", "preprocessor_config.json"
# Of a weight at most; the int8 of a small model has a good part of it longer.
WEIGHT_BYTES = {"float32": 4.0, "float16": 2.0, "int8_float16": 1.5, "int8": 1.5}
SMALL_FILES_BYTES = 50_000_000
# CTranslate2 has windows of 30 s and no others, and knows by their number the tokens of many languages.
WINDOW_FRAMES, MULTILINGUAL_TOKENS = 3000, 51865


def export_run(config: Inference) -> None:
    """Write the run that the flags name in the wanted formats, and see of each that it writes what the run writes.

    Raises:
        UserError: it cannot be exported here; nothing is written then.
        WhisperError: an export writes something else than the run; it stays.
    """
    transformers_logging.disable_progress_bar()
    formats = (MERGED, CTRANSLATE2) if config.export.export == "both" else (config.export.export,)
    bundle = open_bundle(config.bundle.bundle_dir)
    named = (config.use.run,) if config.use.run else ()
    system = find_systems(UseRuns(config.use.output_dir, named), bundle)[-1]
    assert system.run_dir is not None
    run = Run(system.run_dir)
    parity = Parity(system, bundle, config, run.path / "export" / "parity.json")
    if CTRANSLATE2 in formats:
        _require_ctranslate2(bundle)
    with sole_use(run.path):
        _require_room(run, bundle, formats, config.export.export_quantization)
        failures = _write(run, bundle, formats, config.export.export_quantization, parity)
    if system.window == "trimmed":
        bundle_flag = f" --bundle-dir {bundle.path}" if bundle.path != Inference().bundle.bundle_dir else ""
        log.info(
            "this run was trained with trimmed windows: tools that pad to 30 s get another CER than it has in its own; "
            "python evaluate_model.py --run %s%s tells both",
            run.path,
            bundle_flag,
        )
    if failures:
        raise WhisperError("; ".join(failures))


def _write(run: Run, bundle: Bundle, formats: tuple[str, ...], quantization: str, parity: Parity) -> list[str]:
    """Write each format and compare it with the run; return what differs too much."""
    merged, converted = (run.path / "export" / name for name in (MERGED, CTRANSLATE2))
    failures = []
    if MERGED in formats:
        parity.forget(MERGED)
        with folder_made_whole(merged) as beside:
            write_merged(run, bundle, beside)
        log.info("written: %s", merged)
        failures += parity.check(MERGED, "whisper", merged)
    if CTRANSLATE2 in formats:
        parity.forget(CTRANSLATE2)
        source = nullcontext(merged) if MERGED in formats else _merged_for_now(run, bundle, merged)
        with source as whisper, folder_made_whole(converted) as beside:
            convert(whisper, beside, quantization)
        log.info("written: %s (%s)", converted, quantization)
        failures += parity.check(CTRANSLATE2, "ctranslate2", converted)
    return failures


def write_merged(run: Run, bundle: Bundle, folder: Path) -> None:
    """Fill `folder` with the run's model as plain transformers opens it, which needs to be told no language."""
    merge_run(run.path, bundle.model_dir, folder, full_precision=True)
    config = read_settings(folder / "config.json")
    formats = {name: "float32" for name in ("dtype", "torch_dtype") if name in config}
    write_json(folder / "config.json", config | formats)
    generation = read_settings(folder / "generation_config.json")
    # The prompt of old checkpoints, which contradicts these two.
    generation.pop("forced_decoder_ids", None)
    spoken = {"language": run.record["language"].lower(), "task": run.record["task"]}
    write_json(folder / "generation_config.json", generation | spoken)
    if not (folder / TOKENIZER).is_file():
        WhisperTokenizer.from_pretrained(folder).backend_tokenizer.save(str(folder / TOKENIZER))


def convert(merged: Path, folder: Path, quantization: str) -> None:
    """Fill `folder` with a plain Whisper as CTranslate2 and faster-whisper open it."""
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(str(merged), copy_files=[TOKENIZER, FEATURES])
    converter.convert(str(folder), quantization=quantization, force=True)
    tokens = read_settings(merged / "config.json")["vocab_size"]
    if tokens < MULTILINGUAL_TOKENS:
        log.warning(
            "warning: this model has %s tokens, and CTranslate2 takes fewer than %s for a model of English alone: "
            "faster-whisper lets it hear no other language",
            f"{tokens:,}",
            f"{MULTILINGUAL_TOKENS:,}",
        )


@contextmanager
def _merged_for_now(run: Run, bundle: Bundle, path: Path) -> Iterator[Path]:
    """Give the merged model inside the block, where that of `path` would grow: what a crash leaves goes with it."""
    folder = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        write_merged(run, bundle, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _require_ctranslate2(bundle: Bundle) -> None:
    if find_spec("ctranslate2") is None:
        raise UserError("--export ctranslate2 needs the Python package ctranslate2: pip install -r requirements.txt")
    _, frames = mel_window(bundle.model_dir)
    if frames != WINDOW_FRAMES:
        raise UserError(f"--export ctranslate2: it knows windows of 30 s alone, and this model has {frames / 100:g} s")


def _require_room(run: Run, bundle: Bundle, formats: tuple[str, ...], quantization: str) -> None:
    """See that all of it fits beside what was exported before, which stands until then."""
    weights = sum(math.prod(shape) for shape, _ in tensors_of(bundle.model_dir).values())
    # The merged model is there for a while, even where it is not to stay.
    a_weight = WEIGHT_BYTES["float32"] + (WEIGHT_BYTES[quantization] if CTRANSLATE2 in formats else 0)
    needed, free = round(weights * a_weight) + SMALL_FILES_BYTES, shutil.disk_usage(run.path).free
    if needed > free:
        raise UserError(f"--export: {run.path} has {in_bytes(free)} free, and {in_bytes(needed)} are needed")
