"""The sum of operators' times: exact where all layers are alike, between that otherwise; two budgets at once."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from compress.core.errors import BudgetError
from compress.core.types import BlockRef, LayerPlan, LayerRef, Plan, Scheme, Sensitivity, Structure
from compress.plan import budget, latency

DENSE, INT4, INT8 = (Scheme.parse(name) for name in ("bfloat16", "int4-g32-sym", "int8-row-sym"))
SHAPES = {"q": (64, 64), "k": (64, 64), "up": (128, 64), "down": (64, 128)}
BLOCKS = 2


def structure() -> Structure:
    """Two blocks; q and k are fused."""
    blocks = []
    for number in range(BLOCKS):
        names = {part: f"b{number}.{part}" for part in SHAPES}
        layers = tuple(
            LayerRef(name, f"{name}.weight", SHAPES[part], number, part,
                     fused_with=(names["q"], names["k"]) if part in "qk" else ())
            for part, name in names.items()
        )  # fmt: skip
        blocks.append(BlockRef(number, f"b{number}", "", number, layers))
    return Structure("Small", tuple(blocks), None, None, False)


def table(whole: dict[str, float]) -> latency.Table:
    """Times of three kinds."""
    alone = {
        "64 -> 64, 64": {"bfloat16": 2.0, "int4-g32-sym": 1.5, "int8-row-sym": 1.0},
        "64 -> 128": {"bfloat16": 3.0, "int4-g32-sym": 2.5, "int8-row-sym": 1.2},
        "128 -> 64": {"bfloat16": 3.0, "int8-row-sym": 1.3},  # no groups of 32 divide it, say
    }
    return latency.Table("bfloat16", whole, alone, {})


def plans(layer: LayerRef) -> tuple[LayerPlan, ...]:
    """What may be chosen for it."""
    schemes = (INT8, DENSE) if layer.role == "down" else (INT4, INT8, DENSE)
    return tuple(LayerPlan(layer.name, scheme, "rtn", "a candidate") for scheme in schemes)


def total(model: latency.Model, scheme: Scheme) -> float:
    """Of the whole model, every layer at `scheme` that can be."""
    found = model.rest
    for layers in (group for groups in latency.kinds_of(structure()).values() for group in groups):
        able = [plan for plan in plans(layers[0]) if plan.scheme == scheme] or [plans(layers[0])[-1]]
        found += model.of(layers, able[0])
    return found


def test_rest_is_what_all_wholes_agree_on() -> None:
    model = latency.fitted(table({"bfloat16": 21.0, "int4-g32-sym": 19.0, "int8-row-sym": 12.0}), structure())
    assert model.rest == pytest.approx(5.0)  # 2 x (2 + 3 + 3), 2 x (1.5 + 2.5 + 3) and 2 x (1 + 1.2 + 1.3) below
    assert model.each["128 -> 64"] == pytest.approx({"bfloat16": 3.0, "int8-row-sym": 1.3})


@pytest.mark.parametrize("off", [(1.2, 1.1, 1.3), (0.9, 1.0, 1.2), (1.0, 0.8, 3.0)])
def test_where_all_layers_are_alike_the_sum_is_exact(off: tuple[float, float, float]) -> None:
    whole = dict(zip(("bfloat16", "int4-g32-sym", "int8-row-sym"), (21.0, 19.0, 12.0), strict=True))
    whole = {name: ms * by for (name, ms), by in zip(whole.items(), off, strict=True)}
    model = latency.fitted(table(whole), structure())
    for scheme in (DENSE, INT4, INT8):
        assert total(model, scheme) == pytest.approx(whole[scheme.name])
    assert 0 <= model.rest < min(whole.values())


def test_without_another_budget_codes_that_save_no_time_are_no_choice() -> None:
    found = table({"bfloat16": 21.0, "int4-g32-sym": 24.0, "int8-row-sym": 12.0})
    chosen = {layer.name: plans(layer) for layer in structure().layers}
    kept = latency.useful(found, structure(), chosen, True)
    assert {p.treatment for row in kept.values() for p in row} == {"int8-row-sym", "bfloat16"}
    assert latency.useful(found, structure(), chosen, False) == chosen


def size(layers: tuple[LayerRef, ...], plan: LayerPlan) -> float:
    """Bytes by bits alone."""
    return sum(math.prod(layer.shape) for layer in layers) * plan.scheme.bits / 8


def test_two_budgets_against_every_plan_there_is() -> None:
    """The best of all plans that keep both, by trying each; where there is none, the nearest of each is named."""
    model, draw = structure(), random.Random(0)
    chosen = {layer.name: plans(layer) for layer in model.layers}
    found = [
        Sensitivity(layer.name, plan.treatment, loss, loss / 2, 2 * loss, 0.0, 0.0)
        for layer in model.layers
        for plan in chosen[layer.name]
        if plan.scheme.kind == "int"
        for loss in [draw.random() / plan.scheme.bits]
    ]
    times = latency.fitted(table({"bfloat16": 21.0, "int4-g32-sym": 19.0, "int8-row-sym": 12.0}), model)
    groups = [group for groups in latency.kinds_of(model).values() for group in groups]
    losses = {(one.layer, one.scheme): one.value for one in found}
    every = []
    for picked in itertools.product(*(chosen[group[0].name] for group in groups)):
        pairs = list(zip(groups, picked, strict=True))
        loss = sum(losses.get((layer.name, plan.treatment), 0.0) for group, plan in pairs for layer in group)
        every.append((loss, sum(size(g, p) for g, p in pairs), times.rest + sum(times.of(g, p) for g, p in pairs)))

    def limits(most_bytes: float, most_ms: float) -> list[budget.Limit]:
        return [budget.Limit("bytes", most_bytes, 0, size), budget.Limit("ms", most_ms, times.rest, times.of)]

    empty = Plan({}, 0)
    for most_bytes, most_ms in ((60e3, 15.0), (50e3, 14.0), (42e3, 18.0), (math.inf, 13.0)):
        best = min(loss for loss, used, ms in every if used <= most_bytes and ms <= most_ms)
        made = budget.within(limits(most_bytes, most_ms), empty, model, chosen, found)
        assert made.loss == pytest.approx(best)
        assert made.plan.predicted_ms == pytest.approx(made.totals["ms"])
        assert made.totals["bytes"] <= most_bytes
        assert made.totals["ms"] <= most_ms + 1e-9
        said = [plan.reason for plan in made.plan.layers.values() if plan.scheme.kind == "int"]
        assert all("more" in reason or "nothing" in reason for reason in said)
    fastest = min(ms for _, used, ms in every if used <= 41e3)
    assert fastest > 12.5
    with pytest.raises(
        BudgetError, match=f"within 41,000 bytes the fastest plan takes {fastest:.3g} ms, within 12.5 ms"
    ):
        budget.check(limits(41e3, 12.5), model, chosen)
    with pytest.raises(BudgetError, match="9 ms are too few: the fastest plan takes 12 ms, of which 5 ms are not in"):
        budget.check(limits(math.inf, 9.0), model, chosen)
