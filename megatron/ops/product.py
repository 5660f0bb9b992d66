"""Matrix products of linear layers in the library that is fastest at them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., inputs] times weight [outputs, inputs] transposed, plus bias.

    In fp32 on a CPU by oneDNN, as torch.compile does: on an AMD EPYC MKL, which torch takes itself, is 8 % slower (195
    against 211 GFLOP/s on two cores at 2048 x 256 x 1024). In 16 bits torch itself takes oneDNN.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0 and _has_onednn():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _has_onednn() -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # they know F.linear only
        return False
    return torch.backends.mkldnn.is_available()
