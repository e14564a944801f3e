"""Parts: a micro-batch that the memory cannot hold at once is run in several parts, with the same gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from asr.offline.hardware import free_memory, is_out_of_memory
from asr.offline.windows import IGNORE
from utils import WhisperError, log

Inputs = dict[str, torch.Tensor]


class Parts:
    """Runs micro-batches, each in as many parts as the memory has asked for so far.

    The loss is a mean over the tokens of the whole optimiser step, of which a part gives its share: parts add up, and
    gradients do not tell how a micro-batch was cut. Only dropout does, which draws by shape.

    Args:
        batch: utterances of a micro-batch, as `per_device_train_batch_size` has it; to name the flags of next time.
        accumulation: micro-batches of an optimiser step.
        processes: that train together. One of several that ran a part again would leave the others waiting, so with
            more than one nothing is tried again.
    """

    def __init__(self, batch: int, accumulation: int, processes: int = 1) -> None:
        self.batch, self.accumulation, self.processes = batch, accumulation, processes
        self.most_windows: int | None = None

    def run(self, step: Callable[[Inputs], torch.Tensor], model: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
        """Run a micro-batch forward and backward.

        Args:
            step: does it with what it is given, adds to the gradients and returns the loss.
            model: that `step` trains.
            inputs: input_features (W, mel, frames), decoder_input_ids (W, tokens) and labels (W, tokens).

        Returns:
            The loss of the whole micro-batch.

        Raises:
            WhisperError: a single window needs more memory than there is, or several processes train.
        """
        windows = len(inputs["input_features"])
        losses: list[torch.Tensor] = []
        start = 0
        while start < windows:
            size = min(self.most_windows or windows, windows - start)
            part = inputs if size == windows else cut(inputs, start, start + size)
            loss = self._try(step, model, part)
            if loss is None:
                self._shrink(size, windows, _memory_of(model))
            else:
                losses.append(loss)
                start += size
        return sum(losses[1:], losses[0])

    def _try(self, step: Callable[[Inputs], torch.Tensor], model: torch.nn.Module, part: Inputs) -> torch.Tensor | None:
        """Return the loss; or None where memory ran out, and then gradients and random numbers are what they were."""
        # Of several processes none tries again, and DDP averages what earlier micro-batches added up, too.
        before = _take_gradients(model) if self.processes == 1 else []
        rewind = _random_numbers()
        loss = None
        try:
            loss = step(part)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            log.debug("%s", error)
        if loss is not None:
            for parameter, gradient in before:
                parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
            return loss
        # Not before here has the error let go of what its frames held.
        for parameter in model.parameters():
            parameter.grad = None
        for parameter, gradient in before:
            parameter.grad = gradient
        rewind()
        free_memory()
        return None

    def _shrink(self, size: int, windows: int, memory: str) -> None:
        """Let no part be as large as this one was again, and tell what to set next time."""
        if size == 1:
            raise WhisperError(
                f"out of {memory} at a single window: try --gradient-checkpointing on; train_offline.py --check tells "
                "what else would do"
            )
        half = -(-size // 2)
        # Micro-batches of every layout have at most as many windows as the batch size says.
        batch = max(n for n in range(1, half + 1) if self.batch % n == 0)
        flags = f"--per-device-train-batch-size {batch} --gradient-accumulation-steps "
        flags += str(self.accumulation * self.batch // batch)
        if self.processes > 1:
            raise WhisperError(f"out of {memory}: start again with {flags}, which is the same training")
        self.most_windows = half
        log.warning(
            "out of %s: the batch of %d windows is run in %d parts from now on, which is the same training; next "
            "time: %s", memory, windows, -(-windows // half), flags
        )  # fmt: skip


class Whole(Parts):
    """In place of `Parts` where the question is whether a micro-batch fits: lets the error out."""

    def run(self, step: Callable[[Inputs], torch.Tensor], model: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
        """Run a micro-batch at once."""
        return step(inputs)


def cut(inputs: Inputs, start: int, end: int) -> Inputs:
    """Return the windows from `start` to `end` (exclusive), without the tokens that are padding in all of them."""
    part = {name: tensor[start:end] for name, tensor in inputs.items()}
    written = int(part["labels"].ne(IGNORE).any(dim=0).nonzero().max()) + 1
    return part | {name: part[name][:, :written] for name in ("decoder_input_ids", "labels")}


def _take_gradients(model: torch.nn.Module) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Take the gradients of earlier micro-batches out of a model: an error halfway back would spoil them."""
    taken = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    for parameter, _ in taken:
        parameter.grad = None
    return taken


def _random_numbers() -> Callable[[], None]:
    """Return a function that puts the random numbers back to where they are now."""
    drawn, drawn_by_numpy = torch.get_rng_state(), np.random.get_state()
    drawn_on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    def rewind() -> None:
        torch.set_rng_state(drawn)
        np.random.set_state(drawn_by_numpy)
        if drawn_on_gpu is not None:
            torch.cuda.set_rng_state(drawn_on_gpu)

    return rewind


def _memory_of(model: torch.nn.Module) -> str:
    return "GPU memory" if next(model.parameters()).device.type == "cuda" else "memory"
