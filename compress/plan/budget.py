"""A plan within a budget of bytes: the bits of each layer, by what they cost and what they save.

Layers that servers fuse are one choice. Formats' rules hold before the search: what cannot be packed is not a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from compress.core.errors import BudgetError
from compress.core.types import LayerPlan, LayerRef, Plan, Scheme, Sensitivity, Structure
from compress.plan.knapsack import Choice, solve
from compress.plan.mixed import groups_of

BYTES = "bytes"


@dataclass(frozen=True)
class Sizes:
    """What files take. fixed: everything but the layers that are chosen for. of: a packed layer at a scheme."""

    fixed: int
    of: Callable[[LayerRef, Scheme], int]


@dataclass(frozen=True)
class Planned:
    """plan, and what it is expected to take and to lose. low, high: 95 % of the loss."""

    plan: Plan
    bytes: int
    loss: float
    low: float
    high: float


def check(limit: int, structure: Structure, chosen: Mapping[str, Sequence[LayerPlan]], sizes: Sizes) -> None:
    """Raises BudgetError, before any work, for a limit below the smallest file that there is."""
    smallest = sizes.fixed + sum(
        min(sum(sizes.of(layer, scheme) for layer in layers) for scheme in _common(layers, chosen))
        for layers in groups_of(structure).values()
    )
    if limit < smallest:
        raise BudgetError(
            f"{limit:,} bytes are too few: the smallest file is {smallest:,} bytes, of which {sizes.fixed:,} are "
            "not in the layers that are chosen for (vocabulary, norms); allow that much, or pass --embeddings int8"
        )


def within(
    limit: int, plan: Plan, structure: Structure, chosen: Mapping[str, Sequence[LayerPlan]],
    found: Sequence[Sensitivity], sizes: Sizes,
) -> Planned:  # fmt: skip
    """`plan` with the scheme of each layer of the blocks chosen anew: least loss in `limit` bytes.

    The limit must have passed `check`. Raises BudgetError when the search does not end.
    """
    groups = groups_of(structure)
    costs = {(one.layer, one.scheme): one for one in found}
    items = [
        [_choice(scheme, layers, costs, sizes) for scheme in _common(layers, chosen)] for layers in groups.values()
    ]
    room = limit - sizes.fixed
    numbers = solve(items, {BYTES: float(room)})
    if numbers is None:
        raise BudgetError(f"HiGHS found no plan within {limit:,} bytes in its time; allow a little more")
    layers = dict(plan.layers)
    low = high = 0.0
    for members, item, number in zip(groups.values(), items, numbers, strict=True):
        picked = item[number]
        reason = _reason(item, number)
        for layer in members:
            candidate = next(c for c in chosen[layer.name] if c.scheme.name == picked.name)
            layers[layer.name] = replace(candidate, reason=reason)
            low += costs[layer.name, picked.name].low
            high += costs[layer.name, picked.name].high
    picked_all = [item[number] for item, number in zip(items, numbers, strict=True)]
    total = sizes.fixed + round(sum(choice.costs[BYTES] for choice in picked_all))
    made = replace(plan, layers=layers, predicted_bytes=total)
    return Planned(made, total, sum(choice.loss for choice in picked_all), low, high)


def _common(layers: Sequence[LayerRef], chosen: Mapping[str, Sequence[LayerPlan]]) -> list[Scheme]:
    """The schemes that every one of `layers` may have, in order."""
    first, *others = ([plan.scheme for plan in chosen[layer.name]] for layer in layers)
    return [scheme for scheme in first if all(scheme in other for other in others)]


def _choice(
    scheme: Scheme, layers: Sequence[LayerRef], costs: Mapping[tuple[str, str], Sensitivity], sizes: Sizes
) -> Choice:
    loss = sum(costs[layer.name, scheme.name].value for layer in layers)
    return Choice(scheme.name, loss, {BYTES: float(sum(sizes.of(layer, scheme) for layer in layers))})


def _reason(item: Sequence[Choice], number: int) -> str:
    """Why this choice: what it loses, and what the next larger one would save for how many bytes."""
    here = item[number]
    said = f"loses {here.loss:.2g}"
    larger = [choice for choice in item if choice.costs[BYTES] > here.costs[BYTES]]
    if not larger:
        return f"{said}; nothing larger was asked about"
    step = min(larger, key=lambda choice: choice.costs[BYTES])
    more = step.costs[BYTES] - here.costs[BYTES]
    return f"{said}; {step.name} would save {here.loss - step.loss:.2g} for {more / 1e3:,.0f} kB more"
