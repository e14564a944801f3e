"""Which device and which number formats: chosen once, and told with the reason."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asr.offline.ranks import launched
from config import Device
from utils import UserError, log

if TYPE_CHECKING:
    import torch

DEFAULT_DEVICES = Device().cuda_visible_devices


@dataclass(frozen=True)
class Precision:
    """The formats of one session.

    Attributes:
        device: "cuda" or "cpu".
        quantization: format of the frozen weights: "8bit", "4bit" or "none".
        compute_dtype: format of the arithmetic, and of frozen weights that are not quantised.
    """

    device: str
    quantization: str
    compute_dtype: torch.dtype

    def describe(self) -> dict[str, str]:
        """Device and formats in words, for records."""
        import torch

        name = torch.cuda.get_device_name(0) if self.device == "cuda" else "CPU"
        dtype = str(self.compute_dtype).removeprefix("torch.")
        return {"device": name, "quantization": self.quantization, "compute_type": dtype}

    @property
    def autocast(self) -> bool:
        """Whether arithmetic runs in a shorter format than the trained weights have."""
        import torch

        return self.compute_dtype != torch.float32


def choose_precision(device: Device, method: str = "lora") -> Precision:
    """Pick the device and the formats, and log each choice with its reason.

    Args:
        device: the user's wishes.
        method: "full" trains every weight, so nothing can be quantised.

    Raises:
        UserError: the wish cannot be granted here.
    """
    import torch

    cuda = torch.cuda.is_available()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    told = "CUDA_VISIBLE_DEVICES unset" if visible is None else f"CUDA_VISIBLE_DEVICES={visible}"
    log.info("device: %s (%s)", torch.cuda.get_device_name(0) if cuda else "CPU, no CUDA device is visible", told)
    if not cuda and torch.version.cuda and visible != "":
        log.warning("warning: this torch is built for CUDA %s, but finds no GPU: see nvidia-smi", torch.version.cuda)
    wished = device.quantization
    quantization, reason = _auto_quantization(cuda, method) if wished == "auto" else (wished, "as set")
    log.info("quantization: %s (%s)", quantization, reason)
    dtype, reason = _compute_dtype(cuda)
    log.info("compute type: %s (%s)", str(dtype).removeprefix("torch."), reason)
    return Precision("cuda" if cuda else "cpu", quantization, dtype)


def limit_devices(wanted: str) -> None:
    """Apply `cuda_visible_devices`; what a scheduler or a launcher of several processes assigned outranks the default.

    Call it before the first import of transformers or peft: they import bitsandbytes, which starts CUDA.

    Raises:
        UserError: not a list of devices.
    """
    # `accelerate launch --cpu` says so, and Trainer would follow it alone.
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
        wanted = ""
    # A launcher gives each process the GPU of its own number, so that each must see them all.
    assigned = os.environ.get("CUDA_VISIBLE_DEVICES") is not None or launched().world > 1
    if assigned and wanted == DEFAULT_DEVICES:
        return
    if wanted and not all(
        part.strip().isalnum() or part.strip().startswith(("GPU-", "MIG-")) for part in wanted.split(",")
    ):
        raise UserError(f"--cuda-visible-devices {wanted!r}: give numbers with commas between, such as 0,1")
    os.environ["CUDA_VISIBLE_DEVICES"] = wanted


def _auto_quantization(cuda: bool, method: str) -> tuple[str, str]:
    if method == "full":
        return "none", "every weight is trained"
    return ("8bit", "auto, on CUDA") if cuda else ("none", "auto, on a CPU")


def _compute_dtype(cuda: bool) -> tuple[torch.dtype, str]:
    import torch

    if not cuda:
        return torch.float32, "on a CPU"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "the GPU supports it"
    return torch.float16, "the GPU has no bfloat16"
