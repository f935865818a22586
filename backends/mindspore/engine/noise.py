"""Random numbers on the device that follow from keys alone, so that a resumed run draws the same.

MindSpore's own generators keep a state that no checkpoint could hold, and differ between targets. Here each number is
a hash of its index and of the keys, in operators that both targets have.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

__all__ = ["draw_fractions", "draw_gumbel", "make_keys"]

# the constants of lowbias32 (Wellons, 2018), whose second one is negative as a signed number
_FIRST_FACTOR = 0x7FEB352D
_SECOND_FACTOR = 0x846CA68B - (1 << 32)
_SHIFTS = (16, 15, 16)
_BITS = 23
"""Bits of a hash that make a fraction: with half a step more, float32 holds it exactly."""


def make_keys(numbers: list[int]) -> NDArray[np.int32]:
    """Return two keys for :func:`draw_fractions` that follow from ``numbers``, such as a seed and a step."""
    return np.random.SeedSequence(numbers).generate_state(2).astype(np.uint32).view(np.int32)


def draw_fractions(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draw independent uniform numbers between 0 and 1, both excluded, by ``keys`` (2,) int32: float32 of ``shape``."""
    index = ops.arange(math.prod(shape)).astype(ms.int32)
    hashed = _hash(ops.bitwise_xor(_hash(ops.bitwise_xor(index, keys[0])), keys[1]))
    fractions = (_shift_right(hashed, 32 - _BITS).astype(ms.float32) + 0.5) / 2**_BITS
    return fractions.reshape(shape)


def draw_gumbel(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draw independent numbers of the standard Gumbel distribution by ``keys`` (2,) int32: float32 of ``shape``."""
    # an exponential number first, by log1p, as the logarithm of a number near 1 has few digits
    return -ops.log(-ops.log1p(-draw_fractions(keys, shape)))


def _hash(values: Tensor) -> Tensor:
    """Mix the bits of int32 ``values``; products wrap around."""
    values = ops.bitwise_xor(values, _shift_right(values, _SHIFTS[0])) * _FIRST_FACTOR
    values = ops.bitwise_xor(values, _shift_right(values, _SHIFTS[1])) * _SECOND_FACTOR
    return ops.bitwise_xor(values, _shift_right(values, _SHIFTS[2]))


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Shift int32 ``values`` as if they had no sign."""
    kept = Tensor((1 << (32 - bits)) - 1, ms.int32)
    return ops.bitwise_and(ops.bitwise_right_shift(values, Tensor(bits, ms.int32)), kept)
