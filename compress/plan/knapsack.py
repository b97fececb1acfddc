"""One choice for each item, least loss, within limits: a multiple-choice knapsack, solved exactly by HiGHS.

Limits are sums too: bytes, milliseconds. Source: Kellerer, Pferschy, Pisinger 2004, Knapsack Problems, chapter 11;
HiGHS by scipy.optimize.milp.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

GAP = 1e-5
"""Relative distance to the best possible loss at which the search ends."""
SECONDS = 30.0


@dataclass(frozen=True)
class Choice:
    """One way to treat an item. loss: expected. costs: by the name of each limit."""

    name: str
    loss: float
    costs: Mapping[str, float]


Item = Sequence[Choice]
"""The choices of what must be treated alike: one layer, or layers that servers fuse."""


def least(items: Sequence[Item], limit: str) -> float:
    """The smallest sum of `limit` that any choices have."""
    return float(sum(min(choice.costs[limit] for choice in item) for item in items))


def solve(items: Sequence[Item], limits: Mapping[str, float]) -> list[int] | None:
    """The number of the choice of each item: least loss with every sum at most its limit; None when none fits.

    Of equal losses the smaller sums are taken. Memory and work grow with choices, not with their combinations.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    if not items:
        return []
    flat = [choice for item in items for choice in item]
    losses = np.array([choice.loss for choice in flat])
    unit = max(float(np.abs(losses).max()), 1e-300)
    costs = {name: np.array([choice.costs[name] for choice in flat]) for name in limits}
    spread = sum((column / max(float(np.abs(column).sum()), 1e-300) for column in costs.values()), np.zeros(len(flat)))
    owner = np.repeat(np.arange(len(items)), [len(item) for item in items])
    one_each = csr_array((np.ones(len(flat)), (owner, np.arange(len(flat)))), shape=(len(items), len(flat)))
    rules = [LinearConstraint(one_each, 1, 1)]
    for name, column in costs.items():
        scale = max(float(np.abs(column).max()), 1e-300)
        rules.append(LinearConstraint(csr_array(column[None] / scale), -np.inf, limits[name] / scale))
    with _silent():
        found = milp(
            losses / unit + 1e-9 * spread,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            constraints=rules,
            options={"mip_rel_gap": GAP, "time_limit": SECONDS},
        )
    if found.x is None:
        return None
    return _numbers(items, found.x)


@contextmanager
def _silent() -> Iterator[None]:
    """Inside, nothing reaches stdout: HiGHS prints a line of its own where it solves a sub-problem, and stdout may be
    for one JSON object."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _numbers(items: Sequence[Item], chosen: npt.NDArray[np.float64]) -> list[int]:
    found, at = [], 0
    for item in items:
        found.append(int(chosen[at : at + len(item)].argmax()))
        at += len(item)
    return found
