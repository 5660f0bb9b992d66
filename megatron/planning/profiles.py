"""GPUs as the planner knows them: data sheets, and how much of them programs reach."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A GPU in a machine of several.

    From data sheets: memory (GiB), peak_16 and peak_32 (TFLOP/s of dense products in 16 and 32 bits), bandwidth (of its
    memory, GB/s), link (to the other GPUs of the machine, GB/s in one direction), network (its share of the machine's
    adapters, GB/s in one direction), gpus_per_node. Calibrated (docs/planner.md): products, the share of the peak that
    large products reach; half_size, the length of a side of a product at which half of that is left.
    """

    memory: float
    peak_16: float
    peak_32: float
    bandwidth: float
    link: float
    network: float
    gpus_per_node: int
    products: float
    half_size: float


# A100, DGX A100 (8 GPUs, NVSwitch, one 200 Gb/s adapter a GPU): NVIDIA A100 and DGX A100 data sheets. fp32: without
# TF32, PyTorch's default. H100 SXM, DGX H100 (400 Gb/s a GPU): NVIDIA H100 and DGX H100 data sheets. H200: NVIDIA H200
# data sheet; its products have been seen at 790 TFLOP/s, 80 % of the peak. V100 SXM3 32 GB, DGX-2 (16 GPUs, NVSwitch,
# eight 100 Gb/s adapters): NVIDIA V100 and DGX-2 data sheets.
PROFILES = MappingProxyType(
    {
        "a100-40": Profile(
            memory=40, peak_16=312, peak_32=19.5, bandwidth=1555, link=300, network=25, gpus_per_node=8,
            products=0.80, half_size=110,
        ),
        "a100-80": Profile(
            memory=80, peak_16=312, peak_32=19.5, bandwidth=2039, link=300, network=25, gpus_per_node=8,
            products=0.80, half_size=110,
        ),
        "h100": Profile(
            memory=80, peak_16=989, peak_32=67, bandwidth=3350, link=450, network=50, gpus_per_node=8,
            products=0.72, half_size=200,
        ),
        "h200": Profile(
            memory=141, peak_16=989, peak_32=67, bandwidth=4800, link=450, network=50, gpus_per_node=8,
            products=0.80, half_size=200,
        ),
        "v100-32": Profile(
            memory=32, peak_16=125, peak_32=15.7, bandwidth=900, link=150, network=6.25, gpus_per_node=16,
            products=0.50, half_size=110,
        ),
    }
)  # fmt: skip

_NAMES = MappingProxyType(
    {
        "NVIDIA A100-SXM4-40GB": "a100-40",
        "NVIDIA A100-SXM4-80GB": "a100-80",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200": "h200",
        "Tesla V100-SXM3-32GB": "v100-32",
    }
)


def profile_of(device: str) -> Profile | None:
    """The profile of a GPU as its driver calls it; None for others, also of the same chip, whose cards are slower."""
    return PROFILES[_NAMES[device]] if device in _NAMES else None
