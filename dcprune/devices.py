"""Which device and which precision."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dcprune.errors import OptionError

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str = "auto") -> torch.device:
    """The device called `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; `auto` takes CUDA, then MPS, then the CPU.

    CUDA without a number is the device of this process's number on its machine (`LOCAL_RANK`), the first by default.

    Raises:
        OptionError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"Unknown device {name!r}. Known: auto, cpu, cuda, cuda:N, mps.") from error
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise OptionError(f"Device {name!r} is not here: {torch.cuda.device_count()} CUDA devices were found.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError("Device 'mps' is not here: this machine has no Apple GPU that torch can use.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise OptionError(f"Unknown device {name!r}. Known: auto, cpu, cuda, cuda:N, mps.")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The autocast precision called `auto`, `fp32`, `bf16` or `fp16`.

    `auto` is bfloat16 where the hardware multiplies it (CUDA from compute capability 8.0, CPUs with AMX or
    AVX512-BF16) and float32 elsewhere: emulated bfloat16 is two to three times slower on a CPU.

    Raises:
        OptionError: an unknown name, or fp16 on a CPU.
    """
    if name == "auto":
        return torch.bfloat16 if _has_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise OptionError(f"Unknown dtype {name!r}. Known: auto, {', '.join(DTYPES)}.")
    if name == "fp16" and device.type == "cpu":
        raise OptionError("dtype fp16 needs a GPU; use fp32 or bf16 on a CPU.")
    return DTYPES[name]


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        cpuinfo = Path("/proc/cpuinfo")
        return cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in ("avx512_bf16", "amx_bf16"))
    return False


def layout(device: torch.device) -> torch.memory_format:
    """How images and weights of four dimensions should lie in the memory of a device.

    That is channels-last on a GPU, whose convolutions would otherwise turn every tensor round, and contiguous on a CPU,
    where group normalisation and upsampling make channels-last slower (measured on an AMD EPYC with AVX-512: a training
    step of a U-Net by 4 to 12 % in float32 and by 25 to 45 % in bfloat16).
    """
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Autocast to `dtype`; nothing for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """`fp32`, `bf16` or `fp16`."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def device_name(device: torch.device) -> str:
    """The kind of device, and the model of a GPU: `cpu`, `cuda (NVIDIA H200)`."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """Counts the floating-point operations of convolutions and matrix products: `get_total_flops()` says how many.

    The fused kernels of attention are counted on GPUs only; within this, attention is matrix products, which are
    counted everywhere.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def cache_dir() -> Path:
    """Where trained surrogates and downloaded weights are kept: `DCPRUNE_CACHE_DIR`, else the user cache."""
    base = os.environ.get("DCPRUNE_CACHE_DIR")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "dcprune"
