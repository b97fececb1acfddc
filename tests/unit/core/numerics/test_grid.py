"""Grids: what they cover, that a search never loses, and extremes of size."""

from __future__ import annotations

import pytest
import torch

from compress.core.numerics.affine import dequantize
from compress.core.numerics.grid import Grid, Search, minmax_grid, round_to_nearest, search_grid
from compress.core.types import Scheme


def weighted(weight: torch.Tensor, grid: Grid, scheme: Scheme, importance: torch.Tensor) -> torch.Tensor:
    error = (dequantize(round_to_nearest(weight, grid, scheme)).double() - weight.double()) ** 2 * importance
    size = weight.shape[1] if scheme.group_size == -1 else scheme.group_size
    return torch.stack([part.sum(1) for part in error.split(size, 1)], 1)


@pytest.mark.parametrize("scheme", [Scheme("int", 4, 8, False, "float32"), Scheme("int", 3, 8, True, "float32")])
def test_min_max_covers(scheme: Scheme) -> None:
    """In float32 the ends of a group's range land within half a step of a code, and 0 on one."""
    weight = torch.randn(50, 24, generator=torch.Generator().manual_seed(0)) + 0.5
    grid = minmax_grid(weight, scheme)
    value = dequantize(round_to_nearest(weight, grid, scheme))
    assert (
        (value - weight).abs() <= grid.scale.abs().repeat_interleave(8, 1) * 1.001 * (0.5 if scheme.symmetric else 1)
    ).all()
    zeros = torch.zeros_like(weight)
    assert torch.equal(dequantize(round_to_nearest(zeros, grid, scheme)), zeros)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_a_search_never_loses_to_min_max(bits: int, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(40, 50, generator=generator) ** 3
    importance = torch.rand(50, generator=generator) ** 4
    scheme = Scheme("int", bits, 16, symmetric)
    found = weighted(weight, search_grid(weight, importance, scheme, Search()), scheme, importance)
    covered = weighted(weight, minmax_grid(weight, scheme), scheme, importance)
    # 1e-5: candidates are compared in float32
    assert (found <= covered * (1 + 1e-5) + 1e-12).all()
    assert found.sum() < covered.sum()


def test_importance_decides_what_is_clipped() -> None:
    """An outlier that costs nothing is clipped, one that costs everything is kept."""
    weight = torch.linspace(-1, 1, 32).repeat(1, 1)
    weight[0, 5] = 4.0
    scheme = Scheme("int", 3, -1, True)
    cheap, dear = torch.ones(32), torch.ones(32)
    cheap[5], dear[5] = 0.0, 1e4
    assert search_grid(weight, cheap, scheme, Search(40, 0.2)).scale.abs() < 0.5
    kept = search_grid(weight, dear, scheme, Search(40, 0.2))
    assert abs(dequantize(round_to_nearest(weight, kept, scheme))[0, 5] - 4.0) < 0.1


@pytest.mark.parametrize("bits", [2, 3])
def test_the_level_without_an_opposite_goes_where_it_is_needed(bits: int) -> None:
    """Of -4 .. 3 times a scale below 0 there is 4 and no -4; 8 bits, which kernels take as int8, keep their sign."""
    weight = torch.linspace(-1, 1, 64).repeat(2, 1)
    weight[0] = weight[0] ** 3 + 0.4
    weight[1] = -weight[0]
    importance = torch.ones(64)
    found = search_grid(weight, importance, Scheme("int", bits, -1, True, "float32"), Search())
    assert found.scale[0, 0] < 0 < found.scale[1, 0]
    error = weighted(weight, found, Scheme("int", bits, -1, True, "float32"), importance)
    torch.testing.assert_close(error[0], error[1])
    upright = Grid(found.scale[1:].expand(2, 1), None)
    assert error[0] < 0.9 * weighted(weight, upright, Scheme("int", bits, -1, True, "float32"), importance)[0]
    eight = search_grid(weight, importance, Scheme("int", 8, -1, True, "float32"), Search())
    assert (eight.scale > 0).all()


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_extreme_sizes_keep_the_same_codes(size: float) -> None:
    """Powers of two scale exactly, so a float32 or bfloat16 grid of 2^k * W is 2^k times the grid of W."""
    exact = 2.0 ** round(torch.tensor(size).log2().item())
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    importance = torch.rand(32, generator=torch.Generator().manual_seed(1))
    scheme = Scheme("int", 4, 16)
    base = search_grid(weight, importance, scheme, Search())
    other = search_grid(weight * exact, importance * exact, scheme, Search())
    assert torch.equal(other.scale, base.scale * exact)
    assert base.zero is not None
    assert other.zero is not None
    assert torch.equal(other.zero, base.zero)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(37, 48, generator=torch.Generator().manual_seed(0))
    scheme = Scheme("int", 4, 16)
    whole = search_grid(weight, None, scheme, Search())
    monkeypatch.setattr("compress.core.numerics.grid._CHUNK", 100)
    assert torch.equal(search_grid(weight, None, scheme, Search()).scale, whole.scale)
