"""The counter hashes of csrc/hash.h on tensors: int64 holds the bits of unsigned numbers, and products wrap."""

from __future__ import annotations

from torch import Tensor

_LOW32 = 0xFFFFFFFF
_MASK64 = (1 << 64) - 1
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def signed(value: int) -> int:
    """The 64 bits of an unsigned number as int64 has them."""
    return value - (1 << 64) if value >= 1 << 63 else value


def mix64(z: Tensor) -> Tensor:
    """The finalizer of splitmix64, a bijection of 64 bits."""
    z = (z ^ _shifted(z, 30)) * signed(_FIRST)
    z = (z ^ _shifted(z, 27)) * signed(_SECOND)
    return z ^ _shifted(z, 31)


def mix64_int(z: int) -> int:
    """`mix64` of an unsigned number."""
    z &= _MASK64
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK64
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK64
    return z ^ (z >> 31)


def mix32(x: Tensor) -> Tensor:
    """A bijection of 32 bits, on int64 that hold unsigned 32-bit numbers."""
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _LOW32
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _LOW32
    return x ^ (x >> 15)


def row_hash(mixed: Tensor, columns: Tensor) -> Tensor:
    """32 bits for each column of the rows whose 64 mixed bits these are: [rows], [columns] -> [rows, columns]."""
    low, high = (mixed & _LOW32)[:, None], ((mixed >> 32) & _LOW32)[:, None]
    return mix32((mix32(columns ^ low) + high) & _LOW32)


def _shifted(z: Tensor, bits: int) -> Tensor:
    # To the right; the sign bit does not spread.
    return (z >> bits) & ((1 << (64 - bits)) - 1)
