"""Fitting: whether a training's largest step fits the memory, and which other settings would."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import psutil  # type: ignore[import-untyped]
from transformers import WhisperConfig

from asr.offline.estimate import ROOMY, Plan, parameters_of, plan
from asr.offline.footprint import Load, Option, Variant, options_that_fit, variants
from asr.offline.hardware import is_out_of_memory
from asr.offline.measuring import Measured, layout_of, measure
from asr.offline.precision import Precision, choose_precision
from asr.shared.bundle import Bundle
from config import TrainOffline
from utils import log

USABLE = 0.95  # of the memory; the rest is for what else needs some now and then
HOPELESS = 2.0  # times the memory: not tried on a CPU, where the system would kill us for it
MEASURING_S = 8.0


@dataclass(frozen=True)
class Fit:
    """How a training meets the memory.

    Attributes:
        peak_bytes: needed at the highest point; measured, or computed where no measuring could be.
        limit_bytes: what may be used.
        measured: what the steps took; None where they ran out of memory, or were not tried.
        checkpointing: whether activations are computed twice.
        options: settings that would do where these do not, those that change least first.
    """

    peak_bytes: int
    limit_bytes: int
    measured: Measured | None
    checkpointing: bool = False
    options: list[Option] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether the largest step leaves a little room."""
        return self.measured is not None and self.peak_bytes <= USABLE * self.limit_bytes


@dataclass(frozen=True)
class Trial:
    """A training that is tried out.

    Attributes:
        limit_bytes: what may be used.
        base_bytes: what the process held before there was a model; 0 on a GPU, where only tensors are counted.
    """

    config: TrainOffline
    bundle: Bundle
    precision: Precision
    plan: Plan
    limit_bytes: int
    base_bytes: int

    @property
    def checkpointing(self) -> bool:
        """Whether this training computes activations twice."""
        told = self.config.training.gradient_checkpointing
        plain = self.plan.load(self.config, self.precision, checkpointing=False)
        return plain.peak(self.base_bytes) > ROOMY * self.limit_bytes if told == "auto" else told == "on"

    @property
    def load(self) -> Load:
        """What its largest step asks of the memory."""
        return self.plan.load(self.config, self.precision, self.checkpointing)

    def measure(self, seconds: float, decode: bool) -> Measured | None:
        """Return what a few steps take, or None where the memory does not do."""
        decided = Variant({"gradient_checkpointing": "on" if self.checkpointing else "off"}).of(self.config)
        try:
            return measure(decided, self.bundle, self.precision, self.plan, seconds, decode)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            log.debug("out of memory", exc_info=True)
            return None

    def varied(self, variant: Variant) -> Trial:
        """Return the trial of a variant of the same model."""
        config = variant.of(self.config)
        precision = choose_precision(config.device, config.lora.method)
        return replace(
            self, config=config, precision=precision, plan=plan(config, self.bundle, layout_of(config, self.bundle))
        )

    def peak_of(self, variant: Variant, measured: int | None) -> int:
        """Compute what a variant needs, from what these settings were found to need if that is known."""
        mine = self.load
        if variant.size:
            shape = self.plan.shape.resized(variant.size)
            model = WhisperConfig.from_pretrained(self.bundle.model_dir, local_files_only=True)
            model.update(
                {
                    "d_model": shape.d_model,
                    "encoder_layers": shape.encoder_layers,
                    "decoder_layers": shape.decoder_layers,
                    "encoder_ffn_dim": shape.ffn_dim,
                    "decoder_ffn_dim": shape.ffn_dim,
                    "encoder_attention_heads": shape.d_model // 64,
                    "decoder_attention_heads": shape.d_model // 64,
                }
            )
            theirs = replace(mine, shape=shape, trained=parameters_of(model, self.config.lora)[0])
        else:
            theirs = self.varied(variant).load
        base = self.base_bytes
        return theirs.peak(base) if measured is None else theirs.peak_from(measured, mine, base)


def fit(
    config: TrainOffline, bundle: Bundle, precision: Precision, plan: Plan, limit: int, seconds: float = MEASURING_S
) -> Fit:
    """Try the settings out, and where they need too much, find others.

    On a GPU the others are tried out, too; on a CPU, whose peak cannot be forgotten, they are computed.

    Args:
        config: of the training.
        bundle: opened.
        precision: of the device.
        plan: of the same settings.
        limit: bytes that may be used.
        seconds: after which no further step is begun.
    """
    on_gpu = precision.device == "cuda"
    base = 0 if on_gpu else psutil.Process().memory_info().rss
    trial = Trial(config, bundle, precision, plan, limit, base)
    computed = trial.load.peak(base)
    hopeless = not on_gpu and computed > HOPELESS * limit
    measured = None if hopeless else trial.measure(seconds, decode=True)
    peak = measured.peak_bytes if measured else max(computed, limit)
    found = Fit(peak, limit, measured, trial.checkpointing)
    if found.fits:
        return found

    def estimate(variant: Variant) -> Option | None:
        if variant.size or not on_gpu:
            return Option(variant.flags, trial.peak_of(variant, measured.peak_bytes if measured else None), False)
        other = trial.varied(variant)
        # Packed clips of a smaller batch may fill as many windows.
        if replace(other.load, tokens=0) == replace(trial.load, tokens=0):
            return None
        tried = other.measure(seconds=0, decode=False)
        return Option(variant.flags, tried.peak_bytes, True, tried.pace * other.plan.steps) if tried else None

    candidates = variants(config, precision.quantization, plan.layout, plan.shape)
    return replace(found, options=options_that_fit(candidates, estimate, peak, int(USABLE * limit)))
