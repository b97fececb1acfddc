"""Affine integer numbers: `w = (codes - zero) * scale`, one scale and zero for each group of inputs.

O = out features, I = in features, g = group size, G = ceil(I / g) groups a row; the last group of a row is
shorter when g does not divide I. Everything here is pure: inputs are read, never written.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compress.core.errors import ModelError, RecipeError
from compress.core.numerics.codebook import nearest, values_of
from compress.core.types import QTensor, Scheme, torch_dtype


def group_size_of(scheme: Scheme, in_features: int) -> int:
    """Inputs per scale in a row of `in_features`: the scheme's group size, or the whole row for -1."""
    return in_features if scheme.group_size == -1 else scheme.group_size


def symmetric_zero(scheme: Scheme) -> int:
    """The code that stands for 0.0 in a symmetric scheme: 2^(bits-1)."""
    return 1 << (scheme.bits - 1)


def to_groups(weight: Tensor, scheme: Scheme) -> Tensor:
    """`weight` (O, I) as (O, G, g); a view when g divides I, else a copy whose last group is padded with 0.0.

    A zero is representable in every group, so padding never changes a grid or adds to an error.
    """
    rows, cols = weight.shape
    size = group_size_of(scheme, cols)
    if missing := scheme.groups(cols) * size - cols:
        weight = torch.nn.functional.pad(weight, (0, missing))
    return weight.reshape(rows, -1, size)


def per_column(per_group: Tensor, in_features: int, scheme: Scheme) -> Tensor:
    """A value per group (O, G) repeated to one per column (O, in_features)."""
    size = group_size_of(scheme, in_features)
    return per_group.repeat_interleave(size, dim=1)[:, :in_features]


def round_to_storage(scale: Tensor, dtype_name: str, bits: int = 0) -> Tensor:
    """`scale` (any shape, float32) rounded to the nearest value of `dtype_name`, returned as float32; signs stay.

    bits: significant bits that may be used, 0 for all the dtype has.

    What would become 0 is the dtype's smallest usable value instead (smallest normal; float16, whose normals
    end at 6e-5, may use its subnormals), and what would become inf is its largest finite value: a scale can
    always be divided by.
    Raises RecipeError when `dtype_name` is unknown.
    """
    dtype = torch_dtype(dtype_name)
    info = torch.finfo(dtype)
    low = info.smallest_normal * info.eps if dtype is torch.float16 else info.smallest_normal
    below = scale < 0
    scale = scale.abs()
    if bits:
        mantissa, exponent = torch.frexp(scale.clamp(low, info.max))
        scale = torch.ldexp((mantissa * 2**bits).round_() / 2**bits, exponent)
    # the largest value of `bits` bits is below the dtype's largest
    high = info.max if not bits else math.ldexp(1 - 2.0**-bits, math.frexp(info.max)[1])
    stored = scale.clamp(low, high).to(dtype).to(torch.float32)
    return torch.where(below, -stored, stored)


def quantize_codes(weight: Tensor, scale: Tensor, zero: Tensor | None, scheme: Scheme) -> Tensor:
    """Round-to-nearest codes (O, I) uint8 of `weight` (O, I) float32 on a given grid.

    scale: (O, G) float32, not 0. zero: (O, G) uint8, or None for a symmetric scheme. Ties go to even,
    values outside the grid to its ends.
    """
    groups = to_groups(weight, scheme)
    if scheme.kind == "codebook":
        codes = nearest(groups / scale.unsqueeze(2), scheme)
        return codes.reshape(weight.shape[0], -1)[:, : weight.shape[1]].contiguous()
    ratio = (groups / scale.unsqueeze(2)).round_()
    ratio += symmetric_zero(scheme) if zero is None else zero.unsqueeze(2)
    codes = ratio.clamp_(0, 2**scheme.bits - 1).to(torch.uint8)
    return codes.reshape(weight.shape[0], -1)[:, : weight.shape[1]].contiguous()


def dequantize(q: QTensor) -> Tensor:
    """The weight that `q` stands for, (O, I) float32: (codes - zero) * scale, codes * scale + minimum, or levels *
    scale; each operation rounded once."""
    if q.scheme.kind == "codebook":
        groups = to_groups(values_of(q.codes, q.scheme), q.scheme)
    else:
        groups = to_groups(q.codes, q.scheme).to(torch.float32)
    if q.minimum is None and q.scheme.kind != "codebook":
        groups -= symmetric_zero(q.scheme) if q.zero is None else q.zero.unsqueeze(2)
    groups *= q.scale.to(torch.float32).unsqueeze(2)
    if q.minimum is not None:
        groups += q.minimum.to(torch.float32).unsqueeze(2)
    return groups.reshape(q.codes.shape[0], -1)[:, : q.codes.shape[1]].contiguous()


def require_codes(weight: Tensor, scheme: Scheme) -> None:
    """Refuse what no method can turn into codes.

    Raises RecipeError for a `dense` scheme, ModelError unless `weight` is (O, I) and finite.
    """
    if scheme.kind == "dense":
        raise RecipeError(f"scheme {scheme.name} holds no codes; quantize to one like int4-g64-asym, or keep the layer")
    if weight.dim() != 2 or weight.numel() == 0:
        raise ModelError(
            f"a weight of shape {tuple(weight.shape)} cannot be quantized; it must be (out, in) and not empty"
        )
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        row, col = (int(i) for i in (~finite).nonzero()[0])
        bad = float(weight[row, col])
        raise ModelError(f"weight holds {bad} at row {row}, column {col}; all must be finite; repair the checkpoint")
