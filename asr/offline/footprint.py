"""Footprint: the memory that a training step needs, computed from its shapes, and which flags make it need less.

The model is a simple one (after Korthikanti et al., 2022, section 4), good to about a third. Wherever a step could be
measured, the estimate of a variant starts from what was measured and takes from here the differences alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from config import TrainOffline

# Numbers a position of a layer that the backward pass reads again, in units of d_model: attention 7, feed-forward 9;
# in the decoder attention twice.
KEPT_IN_ENCODER, KEPT_IN_DECODER, KEPT_IN_CONVOLUTIONS = 16, 23, 10
# What is held against what is kept, by bytes of a number. On a CPU (4) the allocator gives freed memory back late:
# six trainings of tiny and base, in batches of 1 to 8, peaked between 0.9 and 1.3 times what `peak` says. For a GPU
# (2) it is assumed.
SLACK = {4: 2.0, 2: 1.2}
TRAINED_BYTES = 4 + 4 + 8  # the weight, its gradient, and Adam's two moments
WEIGHT_BYTES = {"8bit": 1.0, "4bit": 0.52}
# OpenAI's sizes: d_model, layers of the encoder, layers of the decoder.
SIZES = {
    "large-v3": (1280, 32, 32),
    "large-v3-turbo": (1280, 32, 4),
    "medium": (1024, 24, 24),
    "small": (768, 12, 12),
    "base": (512, 6, 6),
    "tiny": (384, 4, 4),
}


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Whisper."""

    d_model: int
    encoder_layers: int
    decoder_layers: int
    ffn_dim: int
    num_mel_bins: int
    vocab_size: int

    @property
    def linear(self) -> int:
        """Weights of the layers that can be quantised."""
        attention, feed_forward = 4 * self.d_model**2, 2 * self.d_model * self.ffn_dim
        return self.encoder_layers * (attention + feed_forward) + self.decoder_layers * (2 * attention + feed_forward)

    @property
    def other(self) -> int:
        """Weights of embeddings and convolutions."""
        return self.d_model * (self.vocab_size + 1500 + 448 + 3 * (self.num_mel_bins + self.d_model))

    def resized(self, size: str) -> Shape:
        """Return the shape of one of OpenAI's sizes with the same vocabulary."""
        d_model, encoder, decoder = SIZES[size]
        return replace(self, d_model=d_model, encoder_layers=encoder, decoder_layers=decoder, ffn_dim=4 * d_model)


@dataclass(frozen=True)
class Load:
    """What fills the memory in the largest step.

    Attributes:
        shape: of the model.
        trained: parameters that are trained.
        method: lora or full.
        quantization: 8bit, 4bit or none.
        compute_bytes: of a number in the arithmetic: 2 on a GPU, 4 on a CPU.
        windows: of the batch.
        frames: of each window.
        tokens: of each window's labels.
        checkpointing: activations are computed twice.
    """

    shape: Shape
    trained: int
    method: str
    quantization: str
    compute_bytes: int
    windows: int
    frames: int
    tokens: int
    checkpointing: bool = False

    @property
    def weights(self) -> int:
        """Bytes of weights, gradients and Adam's moments."""
        total = self.shape.linear + self.shape.other
        if self.method == "full":
            # Autocast keeps a shorter copy of each weight until the step ends.
            return total * (TRAINED_BYTES + (2 if self.compute_bytes == 2 else 0))
        if self.quantization == "none":
            return total * self.compute_bytes + self.trained * TRAINED_BYTES
        # What is not quantised is brought to float32 (PEFT's prepare_model_for_kbit_training).
        frozen = self.shape.linear * WEIGHT_BYTES[self.quantization] + self.shape.other * 4
        return int(frozen) + self.trained * TRAINED_BYTES

    @property
    def activations(self) -> int:
        """Bytes that the forward pass leaves for the backward pass, the logits with their softmax included."""
        shape, number = self.shape, self.compute_bytes
        heard, written = self.frames // 2 * shape.d_model, self.tokens * shape.d_model
        encoder_layer = KEPT_IN_ENCODER * heard * number
        decoder_layer = (KEPT_IN_DECODER * written + 2 * heard) * number
        layers = KEPT_IN_CONVOLUTIONS * heard * number
        if self.checkpointing:
            # Each layer's float32 input is kept; one layer at a time is computed again, and its gradients beside it.
            layers += 4 * (shape.encoder_layers * heard + shape.decoder_layers * written)
            layers += 2 * max(encoder_layer, decoder_layer)
        else:
            layers += shape.encoder_layers * encoder_layer + shape.decoder_layers * decoder_layer
        # In float32 logits, their softmax and its gradient; with autocast a shorter copy and its gradient, too.
        logits = self.tokens * shape.vocab_size * (12 if number == 4 else 12 + 2 * number)
        return int(self.windows * (SLACK[number] * layers + logits))

    def peak(self, base: int = 0) -> int:
        """Bytes at the highest point; `base` is what the process holds before there is a model."""
        return base + self.weights + self.activations

    def peak_from(self, measured: int, other: Load, base: int = 0) -> int:
        """Bytes at the highest point, from what was measured under another load."""
        kept = max(measured - base - other.weights, other.activations // 4)
        return base + self.weights + int(kept * self.activations / other.activations)


@dataclass(frozen=True)
class Variant:
    """Another way to train the same data.

    Attributes:
        changes: knobs and their new values; {} for another model.
        size: another size of Whisper, or "".
        alone: whether it changes one thing only.
    """

    changes: dict[str, Any]
    size: str = ""
    alone: bool = True

    @property
    def flags(self) -> str:
        """The variant as one writes it on the command line."""
        if self.size:
            return f"run_online_setup.py --model-name-or-path openai/whisper-{self.size}"
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.changes.items())

    def of(self, config: TrainOffline) -> TrainOffline:
        """Return `config` with the changes made."""
        return _changed(config, self.changes)


@dataclass(frozen=True)
class Option:
    """A variant that would do.

    Attributes:
        flags: what to give.
        peak_bytes: memory at its highest.
        measured: by steps that were run, rather than computed.
        training_seconds: of the whole training, where it was measured.
    """

    flags: str
    peak_bytes: int
    measured: bool
    training_seconds: float | None = None


def variants(config: TrainOffline, quantization: str, layout: str, shape: Shape) -> Iterator[Variant]:
    """Yield what needs less memory, beginning with what changes least.

    Args:
        config: as it is.
        quantization: in use.
        layout: in use.
        shape: of the bundle's model.
    """
    training, full = config.training, config.lora.method == "full"
    batch, accumulated = training.per_device_train_batch_size, training.gradient_accumulation_steps
    smaller = [
        {"per_device_train_batch_size": batch // by, "gradient_accumulation_steps": accumulated * by}
        for by in range(2, batch + 1)
        if batch % by == 0
    ]
    least = smaller[-1] if smaller else {}
    twice = {} if training.gradient_checkpointing == "on" else {"gradient_checkpointing": "on"}
    fewer_bits = [] if full else [bits for bits in ("8bit", "4bit") if _shorter(bits, quantization)]
    yield from map(Variant, smaller)
    if twice:
        yield Variant(twice)
    if layout != "trimmed":
        yield Variant({"audio_layout": "trimmed"})
    yield from (Variant({"quantization": bits}) for bits in fewer_bits)
    if full:
        yield Variant({"method": "lora", "quantization": "auto"})
    if least and twice:
        yield Variant({**least, **twice}, alone=False)
    for bits in fewer_bits:
        yield Variant({**least, **twice, "quantization": bits}, alone=False)
    for size in SIZES:
        other = shape.resized(size)
        if other.linear + other.other < shape.linear + shape.other:
            yield Variant({}, size=size)


def options_that_fit(
    candidates: Iterator[Variant], estimate: Callable[[Variant], Option | None], current: int, limit: int
) -> list[Option]:
    """Return the variants that need less than `current` and no more than `limit`, in their order.

    Of the batch sizes and of the models only the largest that fits is of use; two changes at once are tried only
    where one is not enough.

    Args:
        candidates: as `variants` yields them.
        estimate: what a variant needs; None where it was tried and the memory did not do.
        current: bytes that the settings need as they are.
        limit: bytes that may be used.
    """
    found: list[Option] = []
    kinds: set[tuple[str, ...]] = set()
    for variant in candidates:
        kind = ("size",) if variant.size else tuple(variant.changes)
        if kind in kinds and kind != ("quantization",):
            continue
        if not variant.alone and found:
            continue
        option = estimate(variant)
        if option is not None and option.peak_bytes < current and option.peak_bytes <= limit:
            found.append(option)
            kinds.add(kind)
    return found


def _shorter(bits: str, than: str) -> bool:
    order = ["none", "8bit", "4bit"]
    return order.index(bits) > order.index(than)


def _changed(config: Any, changes: dict[str, Any]) -> Any:
    """Return a configuration with some knobs changed, wherever in its groups they stand."""
    new = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            new[entry.name] = _changed(value, changes)
        elif entry.name in changes:
            new[entry.name] = changes[entry.name]
    return replace(config, **new)
