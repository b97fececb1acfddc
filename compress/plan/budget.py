"""A plan within budgets: the treatment of each layer, by what it costs and what it saves.

Layers that servers fuse are one choice where servers open what may be chosen. Formats' rules hold before the search:
what cannot be packed is not a choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from compress.core.errors import BudgetError
from compress.core.types import DTYPE_BITS, LayerPlan, LayerRef, Plan, Sensitivity, Structure
from compress.plan.knapsack import Choice, Item, least, solve
from compress.plan.mixed import groups_of

BYTES, MS = "bytes", "ms"
OF = " of "
"""`bytes of gguf`: of an export, which stores the same codes otherwise."""
SHOWN: Mapping[str, Callable[[float], str]] = {
    BYTES: lambda value: f"{round(value):,} bytes",
    MS: lambda value: f"{value:.3g} ms",
}
STEP: Mapping[str, Callable[[float], str]] = {
    BYTES: lambda value: f"{value / 1e3:,.0f} kB",
    MS: lambda value: f"{value:.2g} ms",
}
"""How a sum, and a difference of two, is written."""
FEW = 12
"""Layers that are named one by one; more change together only where all must."""
BEST = {BYTES: "the smallest file is", MS: "the fastest plan takes"}
REST = {BYTES: "vocabulary, norms", MS: "attention, norms, look-ups"}
REMEDY = {BYTES: "allow that much, or pass --embeddings int8", MS: "allow that much"}


@dataclass(frozen=True)
class Limit:
    """What a sum over the model may be. name: `bytes`, `bytes of gguf`, `ms`. limit: inf where it is only counted.

    fixed: everything but the layers that are chosen for. of: layers that are treated alike, and how -> what they take.
    """

    name: str
    limit: float
    fixed: float
    of: Callable[[Sequence[LayerRef], LayerPlan], float]

    @property
    def shown(self) -> str:
        """The limit in words."""
        return self.written(self.limit)

    @property
    def kind(self) -> str:
        """`bytes` or `ms`."""
        return self.name.partition(OF)[0]

    def written(self, value: float) -> str:
        """A sum in words: `90,000,000 bytes as gguf`."""
        of = self.name.partition(OF)[2]
        return f"{SHOWN[self.kind](value)} as {of}" if of else SHOWN[self.kind](value)


@dataclass(frozen=True)
class Planned:
    """plan, and what it is expected to take, by the names of limits, and to lose. low, high: 95 % of the loss."""

    plan: Plan
    totals: dict[str, float]
    loss: float
    low: float
    high: float


def check(limits: Sequence[Limit], structure: Structure, chosen: Mapping[str, Sequence[LayerPlan]]) -> None:
    """Raises BudgetError, before any work, for limits that no plan meets; it names the nearest that one does."""
    items = _items(limits, structure, chosen, None)
    for one in limits:
        best = one.fixed + least(items, one.name)
        if one.limit < best:
            raise BudgetError(
                f"{one.shown} are too few: {BEST[one.kind]} {one.written(best)}, of which "
                f"{SHOWN[one.kind](one.fixed)} are not in the layers that are chosen for ({REST[one.kind]}); "
                f"{REMEDY[one.kind]}"
            )
    asked = [one for one in limits if math.isfinite(one.limit)]
    if len(asked) < 2 or solve(items, _rooms(limits)) is not None:
        return
    near = [f"within {one.shown} {BEST[other.kind]} {other.written(_nearest(one, other, items))}"
            for one in asked for other in asked if one is not other]  # fmt: skip
    raise BudgetError(f"no plan has {' and '.join(one.shown for one in asked)}: {', '.join(near)}; allow one of these")


def _nearest(kept: Limit, other: Limit, items: Sequence[Item]) -> float:
    """The smallest sum of `other` while `kept` is."""
    asked = [[replace(choice, loss=choice.costs[other.name]) for choice in item] for item in items]
    numbers = solve(asked, _rooms([kept]))
    if numbers is None:
        return math.inf
    return other.fixed + sum(item[number].costs[other.name] for item, number in zip(items, numbers, strict=True))


def _rooms(limits: Sequence[Limit]) -> dict[str, float]:
    return {one.name: one.limit - one.fixed for one in limits if math.isfinite(one.limit)}


def within(
    limits: Sequence[Limit], plan: Plan, structure: Structure, chosen: Mapping[str, Sequence[LayerPlan]],
    found: Sequence[Sensitivity],
) -> Planned:  # fmt: skip
    """`plan` with the treatment of each layer in `chosen` chosen anew: least loss within all limits.

    The limits must have passed `check`. Raises BudgetError when the search does not end.
    """
    together = groups(structure, chosen)
    costs = {(one.layer, one.scheme): one for one in found}
    items = _items(limits, structure, chosen, costs)
    numbers = solve(items, _rooms(limits))
    if numbers is None:
        said = " and ".join(one.shown for one in limits if math.isfinite(one.limit))
        raise BudgetError(f"HiGHS found no plan within {said} in its time; allow a little more")
    layers = dict(plan.layers)
    low = high = 0.0
    for members, item, number in zip(together, items, numbers, strict=True):
        reason = _reason(item, number, limits)
        for layer in members:
            candidate = next(c for c in chosen[layer.name] if c.treatment == item[number].name)
            layers[layer.name] = replace(candidate, reason=reason)
            if candidate.scheme.kind != "dense":
                low += costs[layer.name, candidate.treatment].low
                high += costs[layer.name, candidate.treatment].high
    layers = tied(layers, structure)
    picked = [item[number] for item, number in zip(items, numbers, strict=True)]
    totals = {one.name: one.fixed + sum(choice.costs[one.name] for choice in picked) for one in limits}
    made = replace(plan, layers=layers, predicted_bytes=round(totals[BYTES]), predicted_ms=totals.get(MS))
    return Planned(made, totals, sum(choice.loss for choice in picked), low, high)


def _items(
    limits: Sequence[Limit], structure: Structure, chosen: Mapping[str, Sequence[LayerPlan]],
    costs: Mapping[tuple[str, str], Sensitivity] | None,
) -> list[list[Choice]]:  # fmt: skip
    """The choices of each group of layers. costs: by layer and treatment; None: losses are not asked about."""
    found: list[list[Choice]] = []
    for layers in groups(structure, chosen):
        found.append([])
        for plan in common(layers, chosen):
            kept = plan.scheme.kind == "dense" or costs is None
            loss = 0.0 if kept or costs is None else sum(costs[la.name, plan.treatment].value for la in layers)
            found[-1].append(Choice(plan.treatment, loss, {one.name: float(one.of(layers, plan)) for one in limits}))
    return found


def groups(structure: Structure, chosen: Mapping[str, Sequence[LayerPlan]]) -> list[tuple[LayerRef, ...]]:
    """What is chosen for as one: layers that servers fuse, and embedding and head where there is a choice."""
    ends = [layer for layer in (structure.embedding, structure.head) if layer is not None and layer.name in chosen]
    return [*groups_of(structure).values(), *((layer,) for layer in ends)]


def tied(layers: Mapping[str, LayerPlan], structure: Structure) -> dict[str, LayerPlan]:
    """The same with a tied head as its embedding is."""
    head, table = structure.head, structure.embedding
    if not structure.tied or head is None or table is None:
        return dict(layers)
    owner = layers[table.name]
    return {**layers, head.name: replace(owner, layer=head.name, reason="tied to the embedding")}


def range_of(
    limits: Sequence[Limit], structure: Structure, chosen: Mapping[str, Sequence[LayerPlan]]
) -> tuple[float, float]:
    """Bytes of the smallest plan within the limits, and of the largest one in which nothing is kept as it is."""
    items = _items(limits, structure, chosen, None)
    size = next(one for one in limits if one.name == BYTES)
    others = [one for one in limits if one is not size and math.isfinite(one.limit)]
    low = size.fixed + least(items, BYTES)
    for one in others:
        low = max(low, _nearest(one, size, items))
    coded = [[choice for choice in item if choice.name not in DTYPE_BITS] or item for item in items]
    high = size.fixed + sum(max(choice.costs[BYTES] for choice in item) for item in coded)
    return low, max(low, min(high, size.limit))


def upgrades(
    planned: Planned, limits: Sequence[Limit], structure: Structure, chosen: Mapping[str, Sequence[LayerPlan]],
    found: Sequence[Sensitivity], best: bool = False,
) -> list[Planned]:  # fmt: skip
    """The plan with one choice the next one up, for every choice that has one: most expected gain a byte first.

    best: every choice as the one that loses least instead, most expected gain first. Limits may be passed.
    """
    costs = {(one.layer, one.scheme): one for one in found}
    items = _items(limits, structure, chosen, costs)
    steps: list[tuple[float, Planned]] = []
    for members, item in zip(groups(structure, chosen), items, strict=True):
        number = next(n for n, c in enumerate(item) if c.name == planned.plan.layers[members[0].name].treatment)
        here = item[number]
        more = [n for n, c in enumerate(item) if c.costs[BYTES] > here.costs[BYTES] and c.loss < here.loss]
        if not more:
            continue
        step = min(more, key=lambda n: item[n].loss if best else item[n].costs[BYTES])
        gain, size = here.loss - item[step].loss, item[step].costs[BYTES] - here.costs[BYTES]
        layers = dict(planned.plan.layers)
        for layer in members:
            candidate = next(c for c in chosen[layer.name] if c.treatment == item[step].name)
            layers[layer.name] = replace(candidate, reason=_reason(item, step, limits))
        totals = {n: t + item[step].costs[n] - here.costs[n] for n, t in planned.totals.items()}
        plan = replace(planned.plan, layers=tied(layers, structure), predicted_bytes=round(totals[BYTES]))
        steps.append(
            (gain if best else gain / size, replace(planned, plan=plan, totals=totals, loss=planned.loss - gain))
        )
    return [step for _, step in sorted(steps, key=lambda one: -one[0])]


def changed(before: Planned, after: Planned) -> str:
    """The layers that two plans treat differently, and how the second one does."""
    layers = [n for n, p in after.plan.layers.items() if p.treatment != before.plan.layers[n].treatment]
    if not layers:
        return ""
    treatment = after.plan.layers[layers[0]].treatment
    if len(layers) > FEW and all(after.plan.layers[name].treatment == treatment for name in layers):
        return f"all {len(layers)} layers: {treatment}"
    first, *others = layers
    home = first.rpartition(".")[0]
    short = [name.removeprefix(f"{home}.") for name in others]  # model.layers.4.mlp.gate_proj, up_proj
    return f"{', '.join([first, *short])}: {treatment}"


def common(layers: Sequence[LayerRef], chosen: Mapping[str, Sequence[LayerPlan]]) -> list[LayerPlan]:
    """The plans whose treatment every one of `layers` may have, in order."""
    first, *others = (chosen[layer.name] for layer in layers)
    return [plan for plan in first if all(plan.treatment in {p.treatment for p in other} for other in others)]


def _reason(item: Sequence[Choice], number: int, limits: Sequence[Limit]) -> str:
    """Why this choice: what it loses, and what the next one up would save, for how much of the first limit."""
    here = item[number]
    if here.name in DTYPE_BITS:
        return "kept as it is: the budget has room for it"
    said = f"loses {here.loss:.2g}"
    binds = next((one for one in limits if math.isfinite(one.limit)), limits[0])
    of = binds.name
    larger = [choice for choice in item if choice.costs[of] > here.costs[of] and choice.loss < here.loss]
    if not larger:
        return f"{said}; nothing {'larger' if binds.kind == BYTES else 'slower'} that was asked about loses less"
    step = min(larger, key=lambda choice: choice.costs[of])
    more = STEP[binds.kind](step.costs[of] - here.costs[of])
    return f"{said}; {step.name} would save {here.loss - step.loss:.2g} for {more} more"
