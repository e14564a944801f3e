"""A session: bundle, run and model opened together, for the scripts that use what was trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from asr.offline.decoding import Transcriber
from asr.offline.precision import choose_precision
from asr.offline.runs import Run, find_run
from asr.offline.whisper import load_adapter, load_whisper, without_adapter
from asr.shared.bundle import Bundle, open_bundle
from asr.shared.processor import load_processor
from config import Decoding, Device, UseRun
from utils import log


@dataclass
class Session:
    """The base model and the tuned one, ready to transcribe.

    Attributes:
        bundle: verified.
        run: the run in use.
        tuned: transcriber of the run's model.
        model: that model; with LoRA its adapter can be switched off.
        whole: transcriber of the base where every weight was tuned, so that it is a model of its own.
    """

    bundle: Bundle
    run: Run
    tuned: Transcriber
    model: torch.nn.Module
    whole: Transcriber | None

    @contextmanager
    def base(self) -> Iterator[Transcriber]:
        """Give the transcriber of the base model, which inside the block is what it was before the training."""
        if self.whole is not None:
            yield self.whole
            return
        with without_adapter(self.model):
            yield self.tuned


def open_session(bundle_dir: Path, use: UseRun, device: Device, decoding: Decoding, with_base: bool = True) -> Session:
    """Verify the bundle, find the run, load what it trained.

    Args:
        with_base: load the base beside a fully tuned model; an adapter has its base anyway.
    """
    transformers_logging.disable_progress_bar()
    bundle = open_bundle(bundle_dir)
    run = find_run(use, bundle)
    full = run.record["settings"]["method"] == "full"
    precision = choose_precision(device, run.record["settings"]["method"])
    processor = load_processor(bundle.model_dir, bundle.language, bundle.task)

    trimmed = run.record["audio_layout"] == "trimmed"

    def listening(model: Any) -> Transcriber:
        return Transcriber.of(model, processor, precision, decoding, trimmed)

    log.info("loading %s", run.weights_dir)
    if full:
        whole = listening(load_whisper(bundle.model_dir, precision)) if with_base else None
        model = load_whisper(run.model_dir, precision)
        return Session(bundle, run, listening(model), model, whole)
    tuned = load_adapter(load_whisper(bundle.model_dir, precision), run.adapter_dir)
    return Session(bundle, run, listening(tuned), tuned, None)
