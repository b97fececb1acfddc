"""Round to nearest: against torch's own division and rounding, and the searched scale against a brute-force one."""

from __future__ import annotations

import pytest
import torch

from compress.core.errors import ModelError, RecipeError
from compress.core.numerics.affine import dequantize
from compress.core.numerics.error import weight_error
from compress.core.types import Scheme
from compress.methods import rtn


def heavy_tailed(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator) ** 3


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_min_max_is_within_half_a_step(bits: int) -> None:
    """Without clipping no weight is further than half a step away (plus the bf16 rounding of the range's end)."""
    weight = heavy_tailed(16, 64)
    q, note = rtn.quantize(weight, None, Scheme("int", bits, 16), rtn.Options(clip=False))
    step = q.scale.repeat_interleave(16, 1)
    assert note is None
    assert ((dequantize(q) - weight).abs() <= step * (0.5 + (2**bits - 1) * 2.0**-8 + 0.5)).all()
    assert ((dequantize(q) - weight).abs() <= step * 0.5001).float().mean() > 0.8


@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (3, True), (4, False)])
def test_clip_search_beats_min_max_and_is_near_brute_force(bits: int, symmetric: bool) -> None:
    """The searched error is at most 2 % above the best of 2,000 scales tried at the same zero, summed over groups."""
    weight = heavy_tailed(8, 64, bits)
    scheme = Scheme("int", bits, 32, symmetric, "float32")
    searched, _ = rtn.quantize(weight, None, scheme, rtn.Options())
    covered, _ = rtn.quantize(weight, None, scheme, rtn.Options(clip=False))
    assert weight_error(weight, dequantize(searched)) < 0.95 * weight_error(weight, dequantize(covered))
    groups = weight.double().view(-1, 32)
    zero = torch.full((len(groups), 1), float(2 ** (bits - 1))).double()
    if covered.zero is not None:
        zero = covered.zero.double().view(-1, 1)
    best = torch.full((len(groups),), torch.inf, dtype=torch.float64)
    for factor in torch.linspace(1.0, 0.2, 2000).tolist():
        step = covered.scale.double().view(-1, 1) * factor
        value = ((groups / step).round() + zero).clamp(0, 2**bits - 1)
        best = torch.minimum(best, (((value - zero) * step - groups) ** 2).sum(1))
    found = ((dequantize(searched).double() - weight) ** 2).sum()
    assert found <= 1.02 * best.sum()


def test_values_on_the_grid_come_back_exactly() -> None:
    codes = torch.arange(16).repeat(4, 2)
    weight = (codes - 5) * 0.125
    q, _ = rtn.quantize(weight, None, Scheme("int", 4, 16), rtn.Options())
    assert torch.equal(dequantize(q), weight)


def test_bad_weights_and_schemes_are_refused() -> None:
    weight = heavy_tailed(4, 32)
    weight[1, 2] = torch.nan
    with pytest.raises(ModelError, match="nan at row 1, column 2"):
        rtn.quantize(weight, None, Scheme("int", 4, 16), rtn.Options())
    with pytest.raises(ModelError, match=r"shape \(4, 8, 4\)"):
        rtn.quantize(weight.view(4, 8, 4), None, Scheme("int", 4, 16), rtn.Options())
    with pytest.raises(RecipeError, match="bfloat16 holds no codes"):
        rtn.quantize(weight, None, Scheme.parse("bfloat16"), rtn.Options())
    with pytest.raises(RecipeError, match="steps 0"):
        rtn.Options(steps=0)
    with pytest.raises(RecipeError, match=r"shrink 1\.5"):
        rtn.Options(shrink=1.5)
