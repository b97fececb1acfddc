"""Packing against compressed-tensors' own, round trips, and grids on any weight hypothesis can think of."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings

from compress.core.numerics.affine import dequantize, quantize_codes
from compress.core.numerics.grid import Search, minmax_grid, round_to_nearest, search_grid
from compress.core.numerics.packing import pack_int32, pack_zero, unpack_int32, unpack_zero
from compress.core.types import Scheme

BITS = st.sampled_from([2, 3, 4, 5, 6, 8])


def codes_of(bits: int, rows: int, cols: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, cols), generator=generator).to(torch.uint8)


def signed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    return (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


@settings(deadline=None, max_examples=80)
@given(bits=BITS, rows=st.integers(1, 9), cols=st.integers(1, 140), seed=st.integers(0, 2**31))
def test_packing_is_compressed_tensors_own(bits: int, rows: int, cols: int, seed: int) -> None:
    codes = codes_of(bits, rows, cols, seed)
    packed = pack_int32(codes, bits)
    assert torch.equal(packed, pack_to_int32(signed(codes, bits), bits))
    assert torch.equal(unpack_from_int32(packed, bits, codes.shape), signed(codes, bits))
    assert torch.equal(unpack_int32(packed, bits, cols), codes)


@settings(deadline=None, max_examples=80)
@given(bits=BITS, rows=st.integers(1, 140), groups=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_zero_points_are_packed_down_the_columns(bits: int, rows: int, groups: int, seed: int) -> None:
    zero = codes_of(bits, rows, groups, seed)
    packed = pack_zero(zero, bits)
    assert packed.is_contiguous()
    assert torch.equal(packed, pack_to_int32(signed(zero, bits), bits, packed_dim=0))
    assert torch.equal(unpack_zero(packed, bits, rows), zero)


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=40),
    bits=BITS,
    group=st.sampled_from([-1, 4, 16]),
    symmetric=st.booleans(),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    scale_bits=st.sampled_from([0, 5]),
)
def test_any_finite_weight_gets_finite_numbers(
    values: list[float], bits: int, group: int, symmetric: bool, dtype: str, scale_bits: int
) -> None:
    """Scales are finite, storable and never 0; rounding again what was dequantized changes no code."""
    weight = torch.tensor([values], dtype=torch.float32)
    scheme = Scheme("int", bits, group, symmetric, dtype, scale_bits)
    for grid in (minmax_grid(weight, scheme), search_grid(weight, None, scheme, Search(8))):
        q = round_to_nearest(weight, grid, scheme)
        assert (grid.scale != 0).all()
        assert torch.equal(grid.scale.to(getattr(torch, dtype)).float(), grid.scale)
        value = dequantize(q)
        assert torch.isfinite(value).all()
        assert torch.equal(quantize_codes(value, grid.scale, grid.zero, scheme), q.codes)
