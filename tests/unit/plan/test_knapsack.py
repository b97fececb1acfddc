"""Choices within limits: against every combination, and against the size that it must take a second for."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import pytest
import scipy.optimize

from compress.plan.knapsack import Choice, least, solve


def drawn(seed: int, items: int, choices: int) -> list[list[Choice]]:
    """Items whose losses fall as their bytes grow, more or less."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(items):
        size, harm = draw.uniform(1, 10), draw.lognormal(0, 2)
        bits = np.sort(draw.uniform(2, 8, choices))
        found.append(
            [
                Choice(
                    f"{b:.1f}", float(harm * 4**-b * draw.uniform(0.8, 1.2)), {"bytes": float(size * b), "ms": float(b)}
                )
                for b in bits
            ]
        )
    return found


def total(items: list[list[Choice]], chosen: list[int], what: str) -> float:
    """The loss, or the sum of a limit, of chosen numbers."""
    picked = [item[n] for item, n in zip(items, chosen, strict=True)]
    return sum(choice.loss if what == "loss" else choice.costs[what] for choice in picked)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("limits", [("bytes",), ("bytes", "ms")])
def test_the_best_of_all_combinations(seed: int, limits: tuple[str, ...]) -> None:
    items = drawn(seed, 6, 3)
    room = {name: least(items, name) * 1.4 for name in limits}
    ways = [list(way) for way in itertools.product(range(3), repeat=6)]
    fit = [way for way in ways if all(total(items, way, name) <= room[name] for name in limits)]
    found = solve(items, room)
    if not fit:
        assert found is None
        return
    assert found is not None
    assert all(total(items, found, name) <= room[name] * (1 + 1e-9) for name in limits)
    assert total(items, found, "loss") == pytest.approx(min(total(items, way, "loss") for way in fit), rel=2e-5)


def test_nothing_fits_below_the_least() -> None:
    items = drawn(0, 5, 4)
    smallest = least(items, "bytes")
    assert solve(items, {"bytes": smallest * 0.999}) is None
    assert solve(items, {"bytes": smallest * 1.001}) is not None
    assert solve([], {"bytes": 1.0}) == []


def test_more_room_is_never_worse() -> None:
    items = drawn(3, 40, 5)
    losses = []
    for share in np.linspace(1.01, 3, 9):
        found = solve(items, {"bytes": least(items, "bytes") * share})
        assert found is not None
        losses.append(total(items, found, "loss"))
    assert all(later <= earlier * (1 + 2e-5) for earlier, later in itertools.pairwise(losses))


def test_a_choice_that_costs_more_for_nothing_is_not_taken() -> None:
    items = [[Choice("small", 1.0, {"bytes": 1.0}), Choice("large", 1.0, {"bytes": 2.0})]] * 3
    assert solve(items, {"bytes": 100.0}) == [0, 0, 0]


def test_a_thousand_layers_with_eight_schemes() -> None:
    items = drawn(1, 1000, 8)
    limit = least(items, "bytes") * 1.5
    found = solve(items, {"bytes": limit})
    assert found is not None
    assert total(items, found, "bytes") <= limit * (1 + 1e-9)


def test_nothing_that_the_solver_prints_reaches_stdout(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    milp = scipy.optimize.milp

    def loud(*given: Any, **named: Any) -> Any:
        os.write(1, b"a line from C\n")
        return milp(*given, **named)

    monkeypatch.setattr(scipy.optimize, "milp", loud)
    print("before", flush=True)
    assert solve([[Choice("a", 1.0, {"bytes": 1.0})]], {"bytes": 2.0}) == [0]
    print("after", flush=True)
    assert capfd.readouterr().out == "before\nafter\n"
