"""Affine numbers against arithmetic written out element by element."""

from __future__ import annotations

import pytest
import torch

from compress.core.errors import RecipeError
from compress.core.numerics.affine import dequantize, per_column, quantize_codes, round_to_storage, to_groups
from compress.core.types import QTensor, Scheme


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("cols", "group"), [(12, 4), (10, 4), (3, 4), (7, -1)])
def test_codes_and_values_element_by_element(symmetric: bool, cols: int, group: int) -> None:
    scheme = Scheme("int", 3, group, symmetric, "float32")
    generator = torch.Generator().manual_seed(cols)
    weight = torch.randn(3, cols, generator=generator)
    groups = scheme.groups(cols)
    scale = torch.rand(3, groups, generator=generator) + 0.1
    zero = None if symmetric else torch.randint(0, 8, (3, groups), generator=generator).to(torch.uint8)
    codes = quantize_codes(weight, scale, zero, scheme)
    value = dequantize(QTensor(codes, scale, zero, scheme))
    assert codes.dtype == torch.uint8
    for row in range(3):
        for col in range(cols):
            at = 0 if group == -1 else col // group
            shift = 4 if zero is None else int(zero[row, at])
            expected = min(max(round(float(weight[row, col] / scale[row, at])) + shift, 0), 7)
            assert int(codes[row, col]) == expected
            assert float(value[row, col]) == float((expected - shift) * scale[row, at])


def test_groups_pad_with_zero_and_columns_drop_it() -> None:
    scheme = Scheme("int", 4, 4)
    weight = torch.arange(1.0, 7.0).view(1, 6)
    assert to_groups(weight, scheme).tolist() == [[[1, 2, 3, 4], [5, 6, 0, 0]]]
    assert per_column(torch.tensor([[1.0, 2.0]]), 6, scheme).tolist() == [[1, 1, 1, 1, 2, 2]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_storage_rounding_is_torchs_own_in_range(dtype: str) -> None:
    scale = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 1e-3
    assert torch.equal(round_to_storage(scale, dtype), scale.to(getattr(torch, dtype)).float())


@pytest.mark.parametrize("bits", [0, 4, 7])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_storage_never_ends_at_zero_or_inf(dtype: str, bits: int) -> None:
    scale = torch.tensor([0.0, 1e-45, 1e-38, 1e-30, 1e-8, 65504.0, 65520.0, 1e30, 3.4e38, torch.inf])
    stored = round_to_storage(scale, dtype, bits)
    assert (stored > 0).all()
    assert torch.isfinite(stored).all()
    assert torch.equal(stored.to(getattr(torch, dtype)).float(), stored)
    assert (stored.diff() >= 0).all()


@pytest.mark.parametrize("bits", [3, 7])
def test_significant_bits_are_kept_to(bits: int) -> None:
    scale = torch.rand(1000, generator=torch.Generator().manual_seed(1)) * 10 + 1e-3
    stored = round_to_storage(scale, "float16", bits)
    mantissa, _ = torch.frexp(stored)
    assert torch.equal(mantissa * 2**bits, (mantissa * 2**bits).round())
    assert ((stored - scale).abs() <= scale * 2.0**-bits).all()


def test_unknown_storage_is_refused() -> None:
    with pytest.raises(RecipeError, match="'int7' is unknown"):
        round_to_storage(torch.ones(1), "int7")
