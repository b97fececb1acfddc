"""How far a quantized weight is from the original: in the weight, and in the layer's output."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ROWS = 256


def output_error(weight: Tensor, dequantized: Tensor, hessian: Tensor | None) -> float:
    """tr(E H E^T) / tr(W H W^T), E = W - Q: the share of the layer's output energy that is lost. No unit.

    weight, dequantized: (O, I) float32; hessian: (I, I) float32. nan without a hessian or when the
    denominator is not a positive number. 256 rows at a time, two temporaries of that size; products are float32, their
    sums float64.
    """
    if hessian is None:
        return math.nan
    lost = total = 0.0
    for start in range(0, weight.shape[0], _ROWS):
        rows = weight[start : start + _ROWS]
        error = rows - dequantized[start : start + _ROWS]
        lost += _quadratic(error, hessian)
        total += _quadratic(rows, hessian)
    return max(lost, 0.0) / total if total > 0 and math.isfinite(total) else math.nan


def weight_error(weight: Tensor, dequantized: Tensor) -> float:
    """|W - Q|^2 / |W|^2 (Frobenius), no unit; nan for an all-zero weight. Both are (O, I) float32."""
    lost = total = 0.0
    for start in range(0, weight.shape[0], _ROWS):
        rows = weight[start : start + _ROWS]
        total += _square_sum(rows)
        lost += _square_sum(rows - dequantized[start : start + _ROWS])
    return lost / total if total > 0 and math.isfinite(total) else math.nan


def _quadratic(rows: Tensor, hessian: Tensor) -> float:
    """Sum of r H r^T over rows, scaled first so that 1e-30 and 1e30 neither vanish nor overflow."""
    peak = float(rows.abs().max()) if rows.numel() else 0.0
    if peak == 0.0 or not math.isfinite(peak):
        return peak
    scaled = rows / peak
    product = (scaled @ hessian).mul_(scaled)
    return float(product.sum(dtype=torch.float64)) * peak * peak


def _square_sum(rows: Tensor) -> float:
    peak = float(rows.abs().max()) if rows.numel() else 0.0
    if peak == 0.0 or not math.isfinite(peak):
        return peak
    return float((rows / peak).square_().sum(dtype=torch.float64)) * peak * peak


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or Inf, by the largest magnitude: `isfinite` would take the tensor's memory once more."""
    if tensor.numel() == 0:
        return True
    return bool(torch.isfinite(torch.linalg.vector_norm(tensor.reshape(-1), ord=torch.inf)))
