"""How much of the machines a run uses: tokens and model FLOPs a second, MFU, memory, and waiting for batches."""

from __future__ import annotations

import re
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from megatron.mpu.context import ParallelContext
from megatron.optimizer.adamw import DTYPES
from megatron.planning.memory import gib
from megatron.planning.profiles import profile_of

_SIDE, _BLOCKS, _BLOCK_SECONDS = 1024, 3, 0.03


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What MFU is relative to. flops: FLOP/s of the devices of all ranks, None if not known; source: in words."""

    flops: float | None
    source: str

    def describe(self) -> str:
        """One line for the report at a run's start."""
        if self.flops is None:
            return f"peak: {self.source}, so records have no MFU"
        return f"peak, which MFU is relative to: {_tera(self.flops)} TFLOP/s, {self.source}"


def find_peak(dtype: Literal["fp32", "bf16", "fp16"], context: ParallelContext) -> Peak:
    """The peak of a run in a number format: from a GPU's data sheet, or measured on CPUs in some 0.1 s. Collective."""
    ranks = context.world.size
    own, source = 0.0, f"measured: products of {_SIDE} x {_SIDE} matrices in {dtype}"
    if context.device.type == "cuda":
        device = torch.cuda.get_device_name(context.device)
        own = data_sheet_flops(device, dtype)
        source = f"data sheet of {device}: dense products in {dtype}" if own else f"not known of {device}"
    else:
        context.world.barrier()  # ranks of one host share its cores
        own = _measured_flops(DTYPES[dtype])
    total, unknown = context.world.all_reduce_(
        torch.tensor([own, own == 0.0], dtype=torch.float64, device=context.device)
    ).tolist()
    if unknown:
        return Peak(flops=None, source=source if own == 0.0 else "not known of all ranks' devices")
    return Peak(flops=total, source=source + (f", {ranks} ranks together" if ranks > 1 else ""))


def data_sheet_flops(device: str, dtype: Literal["fp32", "bf16", "fp16"]) -> float:
    """FLOP/s of dense products of a GPU as its driver calls it; 0 where it is not known."""
    profile = profile_of(device)
    return 0.0 if profile is None else 1e12 * (profile.peak_32 if dtype == "fp32" else profile.peak_16)


def _measured_flops(dtype: torch.dtype) -> float:
    """FLOP/s of large products on this process's threads: the best of some blocks, each long enough to be shared."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(_SIDE, _SIDE, generator=generator).to(dtype) for _ in range(2))
    out = torch.mm(a, b)
    best = 0.0
    for _ in range(_BLOCKS):
        began, products, seconds = time.perf_counter(), 0, 0.0
        while seconds < _BLOCK_SECONDS:
            torch.mm(a, b, out=out)
            products, seconds = products + 1, time.perf_counter() - began
        best = max(best, products * 2.0 * _SIDE**3 / seconds)
    return best


def peak_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that this process had at most so far: on CUDA allocated and reserved, on a CPU its resident set and 0."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return _resident_peak(), 0


def _resident_peak() -> int:
    # Not ru_maxrss where there is another: it begins with the peak of the process that started this one.
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def throughput_of(
    *,
    seconds: float,
    steps: int,
    tokens: float,
    flops: float,
    loader_seconds: float,
    peak: Peak,
    context: ParallelContext,
) -> dict[str, float]:
    """The fields of a training record for steps of the whole run that took so many seconds. Collective.

    tokens: without padding; flops: model FLOPs; loader_seconds: what this rank has waited for batches. Memory and wait
    are those of the rank that has most.
    """
    allocated, reserved = peak_memory(context.device)
    loader, allocated, reserved = context.world.all_reduce_(
        torch.tensor([loader_seconds, allocated, reserved], dtype=torch.float64, device=context.device), "max"
    ).tolist()
    return {
        "tokens_per_second": tokens / seconds,
        "model_tflops_per_second": flops / seconds / 1e12,
        **({} if peak.flops is None else {"mfu": flops / seconds / peak.flops}),
        "step_seconds": seconds / steps,
        "loader_wait_seconds": loader / steps,
        "peak_memory_bytes": int(allocated),
        **({"peak_memory_reserved_bytes": int(reserved)} if context.device.type == "cuda" else {}),
    }


def throughput_line(record: dict[str, Any]) -> str:
    """The same in words, for the console."""
    mfu = f" (MFU {record['mfu']:.1%})" if "mfu" in record else ""
    flops = _tera(1e12 * record["model_tflops_per_second"])
    return (
        f"{record['tokens_per_second']:.0f} tokens/s | {flops} TFLOP/s{mfu} | "
        f"{record['step_seconds'] * 1000:.0f} ms/step | loader {record['loader_wait_seconds'] * 1000:.0f} ms | "
        f"{gib(record['peak_memory_bytes'])}"
    )


def _tera(flops: float) -> str:
    value = flops / 1e12
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
