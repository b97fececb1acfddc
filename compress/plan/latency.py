"""What one request takes, by how each layer is treated: a sum of what operators took on this machine.

ms(plan) = rest + sum over groups of layers of share(treatment) * alone(kind, treatment).

alone: layers that read one input, timed by themselves. Inside a model they find their inputs in the cache and their
weights not, and some of what follows is fused with them; so the model whole is timed as well, all layers treated alike,
and `share` makes the sum exact there. rest: what is left of the whole beside its layers (attention, norms, look-ups);
of all treatments, each weighed by 1 / (its layers' sum)^2, since errors of the sums grow with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from compress.core.types import LayerPlan, LayerRef, Structure
from compress.plan.budget import MS, Limit
from compress.plan.mixed import groups_of

LEAST = 0.25
"""What layers take of the whole beside `rest`, at least, as a share of what they took alone."""


WORTH = 0.95
"""Where time is all, codes are a choice if they take at most this much of what the layer takes as it is."""


def kind_of(layers: Sequence[LayerRef]) -> str:
    """Layers that read one input by their sizes: `384 -> 384, 384, 384`. Kinds of one name take the same."""
    return f"{layers[0].shape[1]} -> {', '.join(str(layer.shape[0]) for layer in layers)}"


def kinds_of(structure: Structure) -> dict[str, list[tuple[LayerRef, ...]]]:
    """Kind -> the groups of layers of that kind, in execution order."""
    found: dict[str, list[tuple[LayerRef, ...]]] = {}
    for layers in groups_of(structure).values():
        found.setdefault(kind_of(layers), []).append(layers)
    return found


@dataclass(frozen=True)
class Table:
    """Milliseconds measured on this machine. dense: the treatment of layers that are kept.

    whole: treatment -> the model, every layer so that can be, others kept. alone: kind -> treatment -> one group.
    about: what was asked of whom: batch, tokens, threads, runtime, version.
    """

    dense: str
    whole: Mapping[str, float]
    alone: Mapping[str, Mapping[str, float]]
    about: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain data, as the journal holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Model:
    """The sum. rest: milliseconds beside the layers. each: kind -> treatment -> one group, shares multiplied in."""

    rest: float
    each: Mapping[str, Mapping[str, float]]

    def of(self, layers: Sequence[LayerRef], plan: LayerPlan) -> float:
        """Milliseconds of layers that are treated alike; what lies outside the blocks is part of the rest."""
        if layers[0].block < 0:
            return 0.0
        return self.each[kind_of(layers)][plan.treatment]


def fitted(table: Table, structure: Structure) -> Model:
    """The sum that gives `table.whole` where all layers are treated alike."""
    counts = {kind: len(groups) for kind, groups in kinds_of(structure).items()}
    able, left = dict.fromkeys(table.whole, 0.0), dict.fromkeys(table.whole, 0.0)  # so treated, kept
    for kind, count in counts.items():
        row = table.alone[kind]
        for treatment in table.whole:
            if treatment in row:
                able[treatment] += count * row[treatment]
            else:
                left[treatment] += count * row[table.dense]
    weights = {name: (able[name] + left[name]) ** -2 for name in table.whole}
    mean = sum(weights[name] * (table.whole[name] - able[name] - left[name]) for name in weights)
    most = min(table.whole[name] - LEAST * (able[name] + left[name]) for name in table.whole)
    rest = max(min(mean / sum(weights.values()), most), 0.0)
    kept = (table.whole[table.dense] - rest) / able[table.dense]
    share = {name: max((table.whole[name] - rest - kept * left[name]) / able[name], 0.0) for name in able if able[name]}
    each = {
        kind: {name: ms * share[name] for name, ms in table.alone[kind].items() if name in share} for kind in counts
    }
    return Model(rest, each)


def limit(table: Table, structure: Structure, most: float) -> Limit:
    """A budget of `most` milliseconds a request."""
    model = fitted(table, structure)
    return Limit(MS, most, model.rest, model.of)


def useful(
    table: Table, structure: Structure, chosen: Mapping[str, Sequence[LayerPlan]], only: bool
) -> dict[str, tuple[LayerPlan, ...]]:
    """`chosen` without what was not timed and, where time is the `only` budget, without codes that save hardly any: who
    need not be small is kept instead."""
    model = fitted(table, structure)
    found = {name: tuple(plans) for name, plans in chosen.items()}
    for layers in groups_of(structure).values():
        row = model.each[kind_of(layers)]
        names = {name for name, ms in row.items() if not only or name == table.dense or ms < WORTH * row[table.dense]}
        for layer in layers:
            found[layer.name] = tuple(plan for plan in chosen[layer.name] if plan.treatment in names)
    return found
