"""What bounds are made of: what a runtime's arithmetic does by itself, and what other last bits do to int8 inputs."""

from __future__ import annotations

import torch

from export.judge import ACTING, DRAWS, FLOAT, FLOAT_KL, SHAKEN, bounds
from export.runtimes._kind import Arithmetic

EXACT = [torch.tensor([[0.0, 0.5, 1.0]])]
INTEGERS = Arithmetic(why="integers", integers=True)


def moved(by: float) -> list[torch.Tensor]:
    """The best of the outputs, lowered."""
    return [EXACT[0] - torch.tensor([0.0, 0.0, by])]


def test_float32_is_bounded_by_itself() -> None:
    found = bounds(EXACT, None, Arithmetic())
    assert (found.largest, found.gap, found.kl) == (FLOAT, 2 * FLOAT, FLOAT_KL)
    assert found.plain == {}


def test_draws_count_where_they_move_more_than_no_rounding_does() -> None:
    draws = [moved(0.01 * n) for n in range(1, DRAWS + 1)]
    found = bounds(EXACT, moved(0.02), INTEGERS, draws)
    most = 0.01 * DRAWS
    assert abs(found.largest - FLOAT - SHAKEN * most) < 1e-6
    assert abs(found.gap - 2 * FLOAT - SHAKEN * most) < 1e-6
    assert abs(found.plain["last_bits"] - most) < 1e-6
    assert f"{DRAWS} draws" in found.why


def test_draws_that_move_less_change_no_bound() -> None:
    plain = bounds(EXACT, moved(0.02), INTEGERS)
    found = bounds(EXACT, moved(0.02), INTEGERS, [moved(0.0), moved(0.01)])
    assert abs(plain.largest - FLOAT - ACTING * 0.02) < 1e-6
    assert (found.largest, found.gap, found.kl) == (plain.largest, plain.gap, plain.kl)
