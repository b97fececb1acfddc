"""Errors against the formula in float64."""

from __future__ import annotations

import math

import pytest
import torch

from compress.core.numerics.error import all_finite, output_error, weight_error


@pytest.mark.parametrize("rows", [1, 255, 256, 700])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_formulas(rows: int, size: float) -> None:
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.randn(100, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    hessian = inputs.t() @ inputs / 50
    weight = torch.randn(rows, 24, generator=generator) * size
    near = weight + 0.01 * size * torch.randn(rows, 24, generator=generator)
    exact, error, curve = weight.double(), (weight - near).double(), hessian.double()
    expected = torch.trace(error @ curve @ error.t()) / torch.trace(exact @ curve @ exact.t())
    assert output_error(weight, near, hessian) == pytest.approx(float(expected), rel=1e-4)
    assert weight_error(weight, near) == pytest.approx(float(error.norm() ** 2 / exact.norm() ** 2), rel=1e-5)


def test_nothing_to_divide_by_is_nan() -> None:
    zero, one = torch.zeros(3, 4), torch.ones(3, 4)
    assert math.isnan(output_error(one, zero, None))
    assert math.isnan(output_error(zero, one, torch.eye(4)))
    assert math.isnan(output_error(one, zero, torch.zeros(4, 4)))
    assert math.isnan(weight_error(zero, one))
    assert output_error(one, one, torch.eye(4)) == 0.0
    assert weight_error(one, zero) == 1.0


def test_one_bad_value_is_seen() -> None:
    weight = torch.ones(3, 4)
    bad = weight.clone()
    bad[1, 1] = torch.nan
    assert math.isnan(output_error(weight, bad, torch.eye(4)))
    assert math.isnan(weight_error(weight, bad))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_any_value_that_is_not_finite_is_seen(dtype: torch.dtype, bad: float) -> None:
    values = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(values)
    assert all_finite(values[:0])
    values[2, 4] = bad
    assert not all_finite(values)
