"""Ranges of static grids: counting is exact and knows no order; each observer against a slow search of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calibrate.collectors.values import ValueCollector
from compress.core.numerics.activation import fake_quantize, static_grid
from compress.core.numerics.observers import OBSERVERS, PERCENTILE
from compress.core.types import ActScheme, ValueCounts

SYM, ASYM = ActScheme("tensor", False, True, "mse"), ActScheme("tensor", False, False, "mse")
CPU = torch.device("cpu")


def gelu_like(count: int = 40_000) -> Tensor:
    x = torch.nn.functional.gelu(torch.randn(count, generator=torch.Generator().manual_seed(0)) * 2)
    x[0] = 30.0  # rare and far away
    return x


def counted(*parts: Tensor) -> ValueCounts:
    collector = ValueCollector(CPU)
    for part in parts:
        collector.add(part)
    return collector.counts()


def squared(x: Tensor, ends: tuple[float, float], scheme: ActScheme) -> float:
    return float((fake_quantize(x, scheme, static_grid(*ends, scheme)) - x).double().square().sum())


def test_batches_may_come_in_any_order_and_size() -> None:
    x = gelu_like()
    whole, parts = counted(x), counted(x[30_000:], x[:10_000].reshape(100, 100), x[10_000:30_000].bfloat16().float())
    assert torch.equal(whole.counts, counted(*x.flip(0).split(7)).counts)
    assert int(parts.counts.sum()) == 40_000
    assert (whole.low, whole.high) == (float(x.min()), float(x.max()))


def test_the_table_stands_for_the_values() -> None:
    x = torch.cat([gelu_like(), torch.zeros(100), -torch.rand(1000) * 5])
    values, counts = counted(x).table()
    assert int(counts.sum()) == x.numel()
    # every value lies in a cell of width 2^-7 of its magnitude: sorted values and cells match pairwise
    order = values.argsort()
    cells = values[order].repeat_interleave(counts[order])
    assert torch.allclose(cells, x.sort().values, rtol=2**-7, atol=0)
    assert float(values[values != 0].abs().min()) > 0
    assert int(counts[values == 0].sum()) >= 100


def test_nothing_counted_is_an_empty_range() -> None:
    found = counted(torch.empty(0, 4))
    assert (found.low, found.high) == (0.0, 0.0)
    assert int(found.counts.sum()) == 0


@pytest.mark.parametrize("scheme", [SYM, ASYM], ids=lambda s: s.name)
def test_mse_is_as_good_as_a_search_over_the_values_themselves(scheme: ActScheme) -> None:
    x = gelu_like(1_000_000)
    ends = OBSERVERS["mse"](counted(x), scheme)
    low, high = float(x.min()), float(x.max())
    tried = [(low * a, high * b) for a in (1.0, 0.8) for b in torch.linspace(0.1, 1, 46).tolist()]
    best = min(squared(x, ends, scheme) for ends in tried)
    assert squared(x, ends, scheme) <= 1.02 * best
    assert squared(x, ends, scheme) < 0.9 * squared(x, (low, high), scheme)


def test_minmax_is_the_ends() -> None:
    x = gelu_like()
    assert OBSERVERS["minmax"](counted(x), ASYM) == (float(x.min()), float(x.max()))


def test_percentile_leaves_out_the_rare() -> None:
    x = gelu_like()
    low, high = OBSERVERS["percentile"](counted(x), SYM)
    around = [float(x.abs().double().quantile(PERCENTILE, interpolation=side)) for side in ("lower", "higher")]
    assert low == -high
    assert around[0] * (1 - 2**-7) <= high <= around[1] * (1 + 2**-7)
    low, high = OBSERVERS["percentile"](counted(x), ASYM)
    assert low == pytest.approx(float(x.double().quantile((1 - PERCENTILE) / 2)), rel=0.02)
    assert low >= float(x.min())


def test_entropy_keeps_a_narrow_body_and_drops_what_is_far() -> None:
    x = torch.randn(40_000, generator=torch.Generator().manual_seed(1))
    everything = OBSERVERS["entropy"](counted(x.clamp(-3, 3)), SYM)
    assert everything[1] >= 2.0  # nothing far: nearly all of it is kept
    far = x.clone()
    far[0] = 100.0
    low, high = OBSERVERS["entropy"](counted(far), SYM)
    assert 2.0 < high < 50.0
    assert low >= -high
    assert OBSERVERS["entropy"](counted(torch.zeros(10)), SYM) == (0.0, 0.0)
