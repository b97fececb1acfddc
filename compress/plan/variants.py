"""Several plans for one budget, to be judged against each other: scores of single layers add up badly below four bits.

Expected losses of layers are exact for small changes only. So the budget is spent under several readings of them, and
what a reading is worth is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from compress.core.errors import BudgetError
from compress.core.types import LayerPlan, Sensitivity
from compress.plan.budget import Planned

Chosen = Mapping[str, tuple[LayerPlan, ...]]
Within = Callable[[Chosen, Sequence[Sensitivity]], Planned]
"""What may be chosen, what it costs -> the best plan. Raises BudgetError when none fits."""

POWERS = {"more even": 1.5, "less even": 0.75}
"""Of the losses: above 1 large ones count for more, so that few bits are avoided; below 1 for less."""


def variants(within: Within, chosen: Chosen, found: Sequence[Sensitivity]) -> dict[str, Planned]:
    """Reading -> its plan, different ones only; `as expected` first."""
    made = {"as expected": within(chosen, found)}
    readings = {"at the upper ends": [replace(one, value=one.high) for one in found]}
    readings |= {name: [replace(one, value=one.value**power) for one in found] for name, power in POWERS.items()}
    for name, read in readings.items():
        made[name] = within(chosen, read)
    if (fewer := without_fewest(chosen)) is not None:
        with suppress(BudgetError):  # too little room for it
            made["without the fewest bits"] = within(fewer, found)
    different: dict[tuple[str, ...], str] = {}
    for name, planned in made.items():
        different.setdefault(schemes(planned), name)
    return {name: made[name] for name in different.values()}


def at_a_plan(
    found: Sequence[Sensitivity], moves: Mapping[tuple[str, str], float], planned: Planned, trust: float
) -> list[Sensitivity]:
    """Costs with what was asked at a plan: moves, (layer, treatment) -> change of its loss.

    trust: the weight of those beside the costs as they are, 0 to 1. Each layer's least cost stays what it is, so that
    costs stay costs; what differs between its choices is what counts.
    """
    before = {(one.layer, one.scheme): one.value for one in found}
    treated = {name: plan.treatment for name, plan in planned.plan.layers.items()}
    values = {}
    for one in found:
        key, here = (one.layer, one.scheme), before.get((one.layer, treated[one.layer]), 0.0)
        alone = one.value - here  # what the move costs by itself
        values[key] = one.value + trust * (moves.get(key, alone) - alone)
    least: dict[str, tuple[float, float]] = {}
    for one in found:
        value, old = values[one.layer, one.scheme], one.value
        low, usual = least.get(one.layer, (value, old))
        least[one.layer] = (min(low, value), min(usual, old))
    return [
        replace(one, value=values[one.layer, one.scheme] - least[one.layer][0] + least[one.layer][1]) for one in found
    ]


def schemes(planned: Planned) -> tuple[str, ...]:
    """The treatment of every layer, in order."""
    return tuple(plan.treatment for plan in planned.plan.layers.values())


def without_fewest(chosen: Chosen) -> Chosen | None:
    """The same without the fewest bits that any layer may have; None where that leaves a layer with nothing."""
    few = min(plan.scheme.bits for plans in chosen.values() for plan in plans)
    left = {name: tuple(p for p in plans if p.scheme.bits > few) for name, plans in chosen.items()}
    return left if all(left.values()) else None


def expected(planned: Planned, chosen: Chosen, found: Sequence[Sensitivity]) -> tuple[float, float, float]:
    """What a plan is expected to lose, and the ends of its interval."""
    costs = {(one.layer, one.scheme): one for one in found}
    rows = [costs[name, planned.plan.layers[name].treatment] for name in chosen
            if planned.plan.layers[name].scheme.kind != "dense"]  # fmt: skip
    return sum(r.value for r in rows), sum(r.low for r in rows), sum(r.high for r in rows)
