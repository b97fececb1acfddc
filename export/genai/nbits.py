"""Codes as onnxruntime's MatMulNBits holds them, and read back from a graph.

`B` uint8 (O, blocks, block * bits / 8), low bits first; `scales` float32 (O, blocks); `zero_points` uint8, packed along
the blocks of a row, absent for 2^(bits-1). Blocks are powers of two from 16 on: larger or odd groups are cut into
blocks that repeat their scale. The operator has kernels for 4 and 8 bits on CPUs, so codes of 2 and 3 bits sit in 4.
(onnxruntime docs/ContribOperators.md, com.microsoft.MatMulNBits.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.core.numerics.affine import group_size_of, symmetric_zero
from compress.core.types import QTensor, Scheme

SMALLEST, LARGEST = 16, 256


@dataclass(frozen=True)
class NBits:
    """One layer: bits of the container, inputs in a block, and the operator's inputs. zero: None when symmetric."""

    bits: int
    block: int
    weight: Tensor
    scales: Tensor
    zero: Tensor | None


def block_of(scheme: Scheme, columns: int) -> int | None:
    """The block that holds the groups of a row of `columns` inputs; None when there is none."""
    size = group_size_of(scheme, columns)
    if scheme.group_size == -1 or size >= columns:
        return max(SMALLEST, min(LARGEST, columns & -columns))
    block = min(LARGEST, size & -size)
    return block if block >= SMALLEST else None


def pack(q: QTensor) -> NBits:
    """The operator's inputs for `q`, whose scheme `block_of` has a block for."""
    rows, columns = q.codes.shape
    scheme, bits = q.scheme, 4 if q.scheme.bits <= 4 else 8
    block = block_of(scheme, columns)
    assert block is not None
    blocks = math.ceil(columns / block)
    group = (torch.arange(blocks) * block) // group_size_of(scheme, columns)
    codes, zero = q.codes, q.zero
    if zero is None and scheme.bits != bits:  # the operator's own zero is that of its container
        codes = codes + ((1 << (bits - 1)) - symmetric_zero(scheme))
    codes = torch.nn.functional.pad(codes, (0, blocks * block - columns))
    return NBits(
        bits,
        block,
        _bytes(codes, bits).view(rows, blocks, block * bits // 8),
        q.scale.float()[:, group].contiguous(),
        None if zero is None else _bytes(zero[:, group], bits),
    )


def _bytes(codes: Tensor, bits: int) -> Tensor:
    """Rows of codes as bytes: as they are at 8 bits, two in one at 4, the first in the lower half."""
    if bits == 8:
        return codes.contiguous()
    even = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))
    return (even[:, ::2] | (even[:, 1::2] << 4)).contiguous()
