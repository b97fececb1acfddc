"""Coordinate descent: never uphill, ends where no single step helps, refits scales as least squares would."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.core.numerics.affine import dequantize, per_column
from compress.core.numerics.descent import descend
from compress.core.numerics.grid import minmax_grid, round_to_nearest
from compress.core.types import QTensor, Scheme


def problem(seed: int, rows: int = 12, cols: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(200, 12, generator=generator) @ torch.randn(12, cols, generator=generator)
    inputs += torch.randn(200, cols, generator=generator)
    return torch.randn(rows, cols, generator=generator), inputs.t() @ inputs / 100


def losses(weight: Tensor, q: QTensor, hessian: Tensor) -> Tensor:
    error = (weight - dequantize(q)).double()
    return ((error @ hessian.double()) * error).sum(1)


@pytest.mark.parametrize("scheme", [Scheme("int", 4, 16), Scheme("int", 2, 20, True), Scheme("int", 3, -1)])
def test_no_row_goes_uphill_in_any_round(scheme: Scheme) -> None:
    for seed in range(5):
        weight, hessian = problem(seed)
        q = round_to_nearest(weight, minmax_grid(weight, scheme), scheme)
        before = losses(weight, q, hessian)
        for _ in range(4):
            q = descend(weight, q, hessian, 1)
            after = losses(weight, q, hessian)
            assert (after <= before * (1 + 1e-5)).all()
            before = after


@pytest.mark.parametrize("cols", [48, 300])
def test_it_ends_where_no_single_code_can_improve(cols: int) -> None:
    """After many rounds every move of one code by one step is priced in float64: none lowers its row by over 1e-4."""
    weight, hessian = problem(7, rows=3, cols=cols)
    scheme = Scheme("int", 3, -1 if cols > 256 else 16, False, "float32")
    start = round_to_nearest(weight, minmax_grid(weight, scheme), scheme)
    q = descend(weight, start, hessian, 30)
    best = losses(weight, q, hessian)
    assert q.zero is not None
    pull = (weight - dequantize(q)).double() @ hessian.double()
    scale = per_column(q.scale, cols, scheme).double()
    for step in (-1, 1):
        inside = (q.codes.int() + step >= 0) & (q.codes.int() + step <= 7)
        change = -2 * step * scale * pull + scale.square() * hessian.double().diagonal()
        assert ((change >= -1e-4 * best[:, None]) | ~inside).all()
    assert losses(weight, q, hessian).sum() < losses(weight, start, hessian).sum()


def test_a_scale_that_is_wrong_is_found_again() -> None:
    """Codes exact, scale 10 % off: one round returns the scale to least squares' answer, the true one."""
    generator = torch.Generator().manual_seed(0)
    _, hessian = problem(0)
    scheme = Scheme("int", 8, -1, True, "float32")
    codes = torch.randint(0, 256, (5, 48), generator=generator).to(torch.uint8)
    truth = QTensor(codes, torch.full((5, 1), 0.5), None, scheme)
    wrong = QTensor(codes, torch.full((5, 1), 0.55), None, scheme)
    found = descend(dequantize(truth), wrong, hessian, 1)
    assert torch.allclose(found.scale, truth.scale, rtol=1e-5)
    assert torch.equal(found.codes, codes)


def test_inputs_are_left_alone_and_no_rounds_is_no_change() -> None:
    weight, hessian = problem(1)
    scheme = Scheme("int", 4, 16)
    q = round_to_nearest(weight, minmax_grid(weight, scheme), scheme)
    kept = [t.clone() for t in (weight, hessian, q.codes, q.scale)]
    assert descend(weight, q, hessian, 0) is q
    descend(weight, q, hessian, 2)
    for now, then in zip((weight, hessian, q.codes, q.scale), kept, strict=True):
        assert torch.equal(now, then)
