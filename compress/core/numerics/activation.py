"""Int8 numbers of activations: `x = (codes - zero) * scale`, codes -128 to 127, one grid a tensor or a token.

The float operations and their order are those of compressed-tensors (`calculate_qparams`, `fake_quantize`), so that a
model run with `fake_quantize` and the artifact opened by transformers agree in every bit. That matters: a value that
falls on the other side of a tie moves the largest value of a later token, and with it the rounding of all its others;
two correct implementations that differ in the last bit differ by as much as the rounding itself six blocks later.

`integer_linear` is the same layer as runtimes compute it: int8 codes, exact int32 sums, one multiplication at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.core.errors import ModelError, RecipeError
from compress.core.numerics.affine import round_to_storage, symmetric_zero
from compress.core.types import ActScheme, QTensor

LOW, HIGH = -128, 127
EXACT_COLUMNS = 1024  # products of two int8 are at most 2^14: this many of them add up exactly in float32
SCALE_BITS = 8  # significant bits of a stored scale: a server's cast to bfloat16 changes nothing


@dataclass(frozen=True)
class Grid:
    """Where codes lie. scale: float32 (1,), or (..., 1) for each token. zero: the code of 0.0, int8, None for 0."""

    scale: Tensor
    zero: Tensor | None = None


def dynamic_grid(x: Tensor, scheme: ActScheme) -> Grid:
    """The grid of `x` (..., I) float32 by its own smallest and largest values, of each token or of the tensor.

    Source: compressed_tensors.quantization.utils.calculate_qparams: symmetric scales are max |x| / 127.5.
    """
    if scheme.strategy == "token":
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    else:
        low, high = (value.reshape(1) for value in torch.aminmax(x))
    return _grid(low, high, scheme, (HIGH - LOW) / 2)


def static_grid(low: float, high: float, scheme: ActScheme) -> Grid:
    """The grid of a tensor whose values lie between `low` and `high`; its scale is on the grid it is stored in.

    Symmetric scales are max |x| / 127, so that both ends are codes. Raises ModelError when a bound is not finite.
    """
    ends = torch.tensor([low, high], dtype=torch.float32)
    if not bool(torch.isfinite(ends).all()):
        raise ModelError(f"the input lies between {low} and {high}; it must be finite")
    return _grid(ends[:1], ends[1:], scheme, HIGH, stored=True)


def _grid(low: Tensor, high: Tensor, scheme: ActScheme, half: float, stored: bool = False) -> Grid:
    low, high = low.clamp(max=0), high.clamp(min=0)  # 0.0 is always a code
    if scheme.symmetric:
        scale = torch.maximum(low.abs(), high.abs()) / half
    else:
        scale = (high - low) / float(HIGH - LOW)
    scale = torch.where(scale == 0, torch.finfo(torch.float32).eps, scale)
    if stored:
        scale = round_to_storage(scale, "float32", SCALE_BITS)
    if scheme.symmetric:
        return Grid(scale)
    return Grid(scale, (LOW - low / scale).clamp(LOW, HIGH).round().to(torch.int8))


def codes_of(x: Tensor, grid: Grid) -> Tensor:
    """Codes of `x` on `grid`, float32 whole numbers -128 to 127: clamped, then rounded, ties to even."""
    scaled = x / grid.scale
    if grid.zero is not None:
        scaled = scaled + grid.zero
    return scaled.clamp(LOW, HIGH).round()


def quantize_linear(x: Tensor, grid: Grid) -> Tensor:
    """Codes of `x` on `grid` as ONNX's QuantizeLinear has them, otherwise as `codes_of`: the zero is added after
    rounding.

    Exact ties apart, the two differ where adding the zero in float32 makes a tie: a few values of a million, and each
    moves what follows.
    """
    codes = (x / grid.scale).round()
    if grid.zero is not None:
        codes = codes + grid.zero
    return codes.clamp(LOW, HIGH)


Coding = Callable[[Tensor, Grid], Tensor]
"""`codes_of` or another reading of the same grid"""


def fake_quantize(x: Tensor, scheme: ActScheme, grid: Grid | None = None, coding: Coding = codes_of) -> Tensor:
    """`x` (..., I) float32 as its codes stand for it. grid: of a static scheme; dynamic schemes make their own."""
    grid = dynamic_grid(x, scheme) if grid is None else grid
    codes = coding(x, grid)
    if grid.zero is not None:
        codes = codes - grid.zero
    return codes * grid.scale


def integer_linear(x: Tensor, weight: QTensor, scheme: ActScheme, grid: Grid | None, bias: Tensor | None) -> Tensor:
    """The layer in integers: sum (cx - zx) cw, exactly, times scale of x and of the row, plus bias; (..., O) float32.

    x: (..., I) float32. weight: symmetric, whole rows. grid: see `fake_quantize`. Raises RecipeError otherwise.
    """
    if weight.zero is not None or weight.scale.shape[1] != 1:
        raise RecipeError(f"{weight.scheme.name} weights have no integer product; it takes whole symmetric rows")
    grid = dynamic_grid(x, scheme) if grid is None else grid
    codes = codes_of(x, grid)
    whole = weight.codes.to(torch.float32) - symmetric_zero(weight.scheme)
    total = integer_product(codes.reshape(-1, x.shape[-1]), whole)
    if grid.zero is not None:
        total = total - grid.zero.reshape(-1, 1).long() * whole.sum(1, dtype=torch.float64).long()
    out = total.reshape(*x.shape[:-1], -1).to(torch.float32) * (grid.scale * weight.scale.float().T)
    return out if bias is None else out + bias


def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """a (n, I) times b (O, I) transposed, both float32 whole numbers of magnitude at most 128: exact int64 (n, O).

    Float32 sums of EXACT_COLUMNS products are exact on every device; int8 kernels of old CPUs saturate.
    """
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int64, device=a.device)
    for start in range(0, a.shape[1], EXACT_COLUMNS):
        part = slice(start, start + EXACT_COLUMNS)
        total += (a[:, part] @ b[:, part].T).to(torch.int64)
    return total
