"""NVIDIA's apex where a run asks for it: its kernels of AdamW and LayerNorm in place of ours. Never needed."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron.errors import UserError
from megatron.ops.adamw import Update

_ADAMW, _CORRECTED = 1, 1  # apex's codes: decoupled decay, moments corrected for their start at zero


def check(flag: str, *, on_gpu: bool) -> None:
    """Raises `UserError` where apex's kernels, which `flag` asks for, cannot be used."""
    if not on_gpu:
        raise UserError(f"{flag} needs a CUDA device; leave it out on a CPU")
    try:
        import amp_C  # noqa: F401
        import fused_layer_norm_cuda  # noqa: F401
        from apex.multi_tensor_apply import multi_tensor_applier  # noqa: F401
        from apex.normalization.fused_layer_norm import fused_layer_norm_affine  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{flag} needs NVIDIA's apex built with its CUDA extensions ({error}); "
            "install it from https://github.com/NVIDIA/apex, or leave the option out"
        ) from None


def adamw_(
    weights: Tensor, gradients: Tensor, first: Tensor, second: Tensor, copy: Tensor | None, update: Update
) -> None:
    """As `megatron.ops.adamw.adamw_`, by apex's multi-tensor kernel."""
    import amp_C
    from apex.multi_tensor_apply import multi_tensor_applier

    scaled = gradients if update.factor == 1.0 else gradients * update.factor
    never_skip = torch.zeros(1, dtype=torch.int32, device=weights.device)
    multi_tensor_applier(
        amp_C.multi_tensor_adam, never_skip, [[scaled], [weights], [first], [second]], update.learning_rate,
        update.beta1, update.beta2, update.epsilon, update.step, _ADAMW, _CORRECTED, update.weight_decay,
    )  # fmt: skip
    if copy is not None:
        copy.copy_(weights)


def layernorm(x: Tensor, weight: Tensor, shift: Tensor, epsilon: float) -> Tensor:
    """Layer normalisation over the last dimension: x [..., columns], weight and shift [columns] of its dtype."""
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    output: Tensor = fused_layer_norm_affine(x, weight, shift, weight.shape, epsilon)
    return output
