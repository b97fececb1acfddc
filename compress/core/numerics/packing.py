"""Codes as dense int32 words: the layout of compressed-tensors' `pack-quantized` (and of its zero points).

Element i of a row occupies bits [i * bits, (i + 1) * bits) of the row, least significant bit first, words in
order; an element may straddle two words, only the end of a row is padded (with zero bits).
compressed-tensors packs signed values after adding 2^(bits-1); our codes are that sum already.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WORD = 32


def pack_int32(codes: Tensor, bits: int) -> Tensor:
    """(R, C) uint8 codes below 2^bits -> (R, ceil(C * bits / 32)) int32. bits: 1 to 8."""
    rows, cols = codes.shape
    words = math.ceil(cols * bits / _WORD)
    # 32 codes fill exactly `bits` words, whatever bits is: one such run is the unit of work
    runs = math.ceil(cols / _WORD)
    padded = torch.nn.functional.pad(codes, (0, runs * _WORD - cols)).view(rows, runs, _WORD)
    packed = torch.zeros(rows, runs, bits, dtype=torch.int32, device=codes.device)
    for element in range(_WORD):
        word, shift = divmod(element * bits, _WORD)
        value = padded[:, :, element].to(torch.int32)
        packed[:, :, word] |= value << shift
        if shift + bits > _WORD:
            packed[:, :, word + 1] |= value >> (_WORD - shift)
    return packed.view(rows, runs * bits)[:, :words].contiguous()


def unpack_int32(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse of `pack_int32`: (R, ceil(columns * bits / 32)) int32 -> (R, columns) uint8."""
    rows, words = packed.shape
    runs = math.ceil(columns / _WORD)
    padded = torch.nn.functional.pad(packed, (0, runs * bits - words)).view(rows, runs, bits)
    codes = torch.empty(rows, runs, _WORD, dtype=torch.uint8, device=packed.device)
    mask = (1 << bits) - 1
    for element in range(_WORD):
        word, shift = divmod(element * bits, _WORD)
        # >> keeps the sign of an int32: mask what it drags in before the neighbour's bits are added
        value = (padded[:, :, word] >> shift) & (mask >> max(0, shift + bits - _WORD))
        if shift + bits > _WORD:
            value = value | (padded[:, :, word + 1] << (_WORD - shift))
        codes[:, :, element] = (value & mask).to(torch.uint8)
    return codes.view(rows, runs * _WORD)[:, :columns].contiguous()


def pack_zero(zero: Tensor, bits: int) -> Tensor:
    """Zero points (O, G) uint8 -> (ceil(O * bits / 32), G) int32: packed down the columns."""
    return pack_int32(zero.t().contiguous(), bits).t().contiguous()


def unpack_zero(packed: Tensor, bits: int, rows: int) -> Tensor:
    """The inverse of `pack_zero`: (ceil(rows * bits / 32), G) int32 -> (rows, G) uint8."""
    return unpack_int32(packed.t().contiguous(), bits, rows).t().contiguous()
