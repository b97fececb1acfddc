"""ggml's block types Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: 32 weights, a float16 scale, some of them a float16 minimum.

Bytes are those of ggml-common.h (block_q4_0 ... block_q8_0), values those of `dequantize_row_q*` in ggml-quants.c:
`_0` types are `(q - 2^(bits-1)) * d`, `_1` types `q * d + m`. Our integer schemes fit into them without rounding where
their scales are float16 numbers: zero points become minima, since -zero * scale has few enough digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.core.errors import RecipeError
from compress.core.numerics.affine import per_column, symmetric_zero
from compress.core.types import GGML_BITS, QTensor, Scheme

BLOCK = 32


@dataclass(frozen=True)
class Blocks:
    """A matrix in blocks. kind: `q4_0` ... codes: (O, I) uint8. scale, minimum: (O, I / 32) float32, float16 numbers;
    minimum None for the `_0` types."""

    kind: str
    codes: Tensor
    scale: Tensor
    minimum: Tensor | None


def kind_for(scheme: Scheme) -> str | None:
    """The block type that holds codes of `scheme`, by bits and symmetry alone; None when there is none."""
    if scheme.kind == "ggml":
        return scheme.name
    if scheme.kind != "int" or (scheme.group_size != -1 and scheme.group_size % BLOCK):
        return None
    if scheme.symmetric:
        return "q4_0" if scheme.bits <= 4 else "q5_0" if scheme.bits == 5 else "q8_0"
    return "q4_1" if scheme.bits <= 4 else None


def to_blocks(q: QTensor) -> Blocks:
    """`q` as blocks that stand for the very same weights.

    Raises RecipeError when a scale or minimum is no float16 number, or when 32 does not divide the row.
    """
    kind = kind_for(q.scheme)
    columns = q.codes.shape[1]
    if kind is None or columns % BLOCK:
        raise RecipeError(f"{q.scheme.name} codes of {columns} inputs do not fit ggml's blocks of {BLOCK}")
    scale = per_column(q.scale, columns, q.scheme)[:, ::BLOCK].contiguous()
    minimum = None
    codes = q.codes
    if q.scheme.kind == "ggml":
        minimum = q.minimum
    elif q.zero is None:
        codes = codes + ((1 << (GGML_BITS[kind] - 1)) - symmetric_zero(q.scheme))
    else:
        minimum = -scale * per_column(q.zero.to(torch.float32), columns, q.scheme)[:, ::BLOCK]
    for name, values in (("scale", scale), ("minimum", minimum)):
        if values is not None and not torch.equal(values.half().float(), values):
            raise RecipeError(f"a {name} of {q.scheme.name} is no float16 number; solve for ggml with --scheme {kind}")
    return Blocks(kind, codes, scale, minimum)


def pack(blocks: Blocks) -> Tensor:
    """(O, I / 32 * bytes a block) uint8, as ggml lays it out."""
    rows, columns = blocks.codes.shape
    codes = blocks.codes.reshape(rows, columns // BLOCK, BLOCK)
    parts = [_halves(blocks.scale)]
    if blocks.minimum is not None:
        parts.append(_halves(blocks.minimum))
    if blocks.kind == "q8_0":
        parts.append(codes ^ 0x80)  # two's complement of code - 128
    else:
        if blocks.kind.startswith("q5"):
            parts.append(_fifth_bits(codes >> 4))
        low = codes & 0x0F
        parts.append(low[..., : BLOCK // 2] | (low[..., BLOCK // 2 :] << 4))
    return torch.cat(parts, 2).reshape(rows, -1).contiguous()


def unpack(kind: str, data: Tensor, columns: int) -> Blocks:
    """The inverse of `pack`. data: (O, bytes) uint8."""
    rows = data.shape[0]
    blocks = data.reshape(rows, columns // BLOCK, -1)
    scale, blocks = _floats(blocks[..., :2]), blocks[..., 2:]
    minimum = None
    if kind.endswith("_1"):
        minimum, blocks = _floats(blocks[..., :2]), blocks[..., 2:]
    if kind == "q8_0":
        return Blocks(kind, (blocks ^ 0x80).reshape(rows, columns), scale, None)
    fifth = None
    if kind.startswith("q5"):
        fifth, blocks = blocks[..., :4], blocks[..., 4:]
    codes = torch.cat([blocks & 0x0F, blocks >> 4], 2)
    if fifth is not None:
        codes |= ((fifth.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(2) << 4
    return Blocks(kind, codes.reshape(rows, columns), scale, minimum)


def from_blocks(blocks: Blocks) -> QTensor:
    """The codes of `blocks` as a ggml scheme has them."""
    scheme = Scheme.parse(blocks.kind)
    return QTensor(blocks.codes, blocks.scale, None, scheme, blocks.minimum)


def _halves(values: Tensor) -> Tensor:
    return values.half().contiguous().view(torch.uint8).reshape(*values.shape, 2)


def _floats(data: Tensor) -> Tensor:
    return data.contiguous().view(torch.float16).squeeze(-1).float()


def _fifth_bits(high: Tensor) -> Tensor:
    """(O, B, 32) of 0 and 1 -> (O, B, 4): bit j of a little-endian word is that of weight j."""
    weights = (1 << torch.arange(8)).to(torch.uint8)
    eights = high.reshape(*high.shape[:2], 4, 8)
    return (eights * weights).sum(-1).to(torch.uint8)
