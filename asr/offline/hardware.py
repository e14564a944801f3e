"""The hardware as a training meets it: GPU, driver, the quantised layers' kernels, memory."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.shared.driver import driver_trouble, driver_version
from asr.shared.meter import in_bytes

if TYPE_CHECKING:
    from asr.offline.precision import Precision

# Compute capability that bitsandbytes' kernels need (its installation guide).
CAPABILITY = {"8bit": (7, 5), "4bit": (6, 0)}
# How far a quantised product may be from the float one, relative to its norm.
TOLERANCE = {"8bit": 0.05, "4bit": 0.25}
MOSTLY_FREE = 0.8
NO_GPU = '--cuda-visible-devices "" trains on the CPU'
OTHER_CUDA = "run_online_setup.py --wheels --target-cuda 126 --wheel-index URL brings another torch"
CPU_ADVICE = "fine for a try; for real data use a box with a GPU"


def why_no_cuda() -> str:
    """Return why torch finds no GPU, in its own words."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return str(error).strip().split(". ")[0].splitlines()[0]
    return "no CUDA device is visible"


def has_kernels(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Tell whether a torch that is built for `architectures` runs on a GPU of `capability`.

    Args:
        capability: major and minor, as (8, 6).
        architectures: as torch.cuda.get_arch_list() has them: sm_80 is machine code, good for 8.0 and later 8.x;
            compute_90 is compiled on the spot for anything from 9.0 on.
    """
    ours = 10 * capability[0] + capability[1]
    for name in architectures:
        kind, _, digits = name.partition("_")
        # A letter at the end (sm_90a) binds the code to this one architecture.
        number, exact = int(re.sub(r"\D", "", digits)), not digits.isdigit()
        later = number <= ours and (kind == "compute" or number // 10 == capability[0])
        if number == ours if exact else later:
            return True
    return False


def gpu(quantization: str) -> tuple[str, str, str]:
    """Look at the GPU that is visible.

    Args:
        quantization: as the user wishes it.

    Returns:
        pass, warn or fail; what was found; what to do.
    """
    import torch

    cuda, driver = torch.version.cuda, driver_version()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    on_cpu = "it trains on the CPU"
    if wanted == "":
        return "pass", f"none is wanted: {on_cpu}", ""
    if cuda is None:
        if driver is None:
            return "warn", f"none, and this torch is built for the CPU: {on_cpu}", CPU_ADVICE
        return "fail", f"driver {driver}, but this torch is built for the CPU", f"{OTHER_CUDA}, or {NO_GPU}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if torch.cuda.is_available():
            return _visible_gpu(quantization, driver, cuda)
    trouble = driver_trouble(driver, cuda)
    if trouble:
        return "fail", trouble, f"install a newer driver, or {OTHER_CUDA}"
    seen = f"CUDA_VISIBLE_DEVICES={wanted}" if wanted is not None else "no CUDA_VISIBLE_DEVICES"
    told = f"torch's CUDA {cuda} finds none ({why_no_cuda()}; {seen})"
    if driver is None:
        return "warn", f"{told}: {on_cpu}", CPU_ADVICE
    return "fail", told, f"see nvidia-smi, or {NO_GPU}"


def _visible_gpu(quantization: str, driver: str | None, cuda: str) -> tuple[str, str, str]:
    import torch

    capability = torch.cuda.get_device_capability(0)
    free, total = torch.cuda.mem_get_info(0)
    told = (
        f"{torch.cuda.get_device_name(0)}, {in_bytes(total)} ({in_bytes(free)} free); driver "
        f"{driver or 'unknown'}, CUDA {cuda}; compute capability {capability[0]}.{capability[1]}"
    )
    if not has_kernels(capability, torch.cuda.get_arch_list()):
        return "fail", f"{told}: this torch has no code for it", f"{OTHER_CUDA}, or {NO_GPU}"
    needed = CAPABILITY.get("8bit" if quantization == "auto" else quantization, (0, 0))
    if capability < needed:
        least = f"{needed[0]}.{needed[1]}"
        other = "--quantization 4bit or none" if capability >= CAPABILITY["4bit"] else "--quantization none"
        return "warn", f"{told}: below the {least} that quantised weights are made for", other
    if free < MOSTLY_FREE * total:
        return "warn", f"{told}: others are using it", "see nvidia-smi for whose it is"
    return "pass", told, ""


def quantized_step(precision: Precision) -> float:
    """Run a quantised layer of bitsandbytes forward and backward on the device.

    Returns:
        The larger error of output and gradient against the layer in float32, relative to its norm.
    """
    import bitsandbytes
    import torch

    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)) / 16
    layer: Any
    if precision.quantization == "8bit":
        layer = bitsandbytes.nn.Linear8bitLt(256, 256, bias=False, has_fp16_weights=False, threshold=6.0)
    else:
        layer = bitsandbytes.nn.Linear4bit(
            256, 256, bias=False, compute_dtype=precision.compute_dtype, compress_statistics=True, quant_type="nf4"
        )
        layer.support_avx512bf16_for_cpu = False
    layer.load_state_dict({"weight": weight})
    layer = layer.to(precision.device)
    given = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    inputs = given.to(precision.device, precision.compute_dtype, copy=True).requires_grad_()
    outputs = layer(inputs)
    outputs.float().pow(2).sum().backward()
    assert inputs.grad is not None
    wanted = given @ weight.T
    pairs = [(outputs, wanted), (inputs.grad, 2 * wanted @ weight)]
    return max(float((found.detach().float().cpu() - exact).norm() / exact.norm()) for found, exact in pairs)


def describe_machine() -> dict[str, Any]:
    """Return what a run's record says of the machine: what it is, never what it is called."""
    import psutil  # type: ignore[import-untyped]
    import torch

    found: dict[str, Any] = {
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found["gpus"] = [
            {"name": gpu.name, "memory_bytes": gpu.total_memory, "compute_capability": f"{gpu.major}.{gpu.minor}"}
            for gpu in gpus
        ]
        found |= {"driver": driver_version(), "cuda": torch.version.cuda}
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on the GPU or on the CPU."""
    import torch

    told = str(error).lower()
    ran_out = ("out of memory", "alloc_failed", "can't allocate memory", "not enough memory")
    is_kind = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_kind or (isinstance(error, RuntimeError) and any(words in told for words in ran_out))


def usable_memory(device: str) -> int:
    """Return the bytes that this process may use on "cuda" or "cpu": what it has and what is free."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    import psutil

    usable = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        # A container's limit; "max" where there is none.
        with contextlib.suppress(OSError, ValueError):
            usable = min(usable, int(Path(file).read_text()))
    return usable


def peak_memory(device: str) -> int:
    """Return the most bytes that were held since `forget_peak`: reserved on "cuda", resident on "cpu"."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_reserved()
    with contextlib.suppress(OSError, StopIteration):
        # getrusage() would also count what a parent process held before it started this one.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    if os.name == "nt":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak(device: str) -> None:
    """Give back what is no longer used, and begin to look for the peak anew; a CPU's peak stays the process's."""
    import gc

    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def free_memory() -> None:
    """Give back what is no longer used, after an error has let go of it."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
