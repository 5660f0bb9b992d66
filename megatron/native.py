"""The compiled helpers `megatron._C` (from csrc/), or a clear word on how to get them."""

from __future__ import annotations

from megatron.errors import UserError

try:
    from megatron import _C
except ImportError as error:
    raise UserError(f"the compiled helpers megatron._C cannot be imported ({error}): run `make install`") from error

__all__ = ["_C"]
