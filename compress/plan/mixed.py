"""Eight bits where few bits do most damage, as measured; the rest as planned.

Layers that servers fuse (q/k/v, gate/up) are one choice where servers open what is chosen: they want one scheme.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace

from compress.core.errors import RecipeError
from compress.core.types import ActScheme, LayerRef, Plan, Scheme, Structure
from compress.plan.uniform import predicted_bytes
from compress.recipe import Recipe


def is_mixed(recipe: Recipe, structure: Structure, encoder: bool, activation: ActScheme | None) -> bool:
    """Whether some layers get eight bits: as asked, else for encoders at four bits, whose neighbours and labels move
    with rounding that a language model does not notice.

    Raises RecipeError where no server can open such a model.
    """
    if recipe.scheme:
        return False
    experts = any(layer.expert is not None for layer in structure.layers)
    if recipe.mixed is None:
        plain = recipe.bits == 4 and recipe.symmetric is not False and not experts
        return encoder and plain and activation is None
    if not recipe.mixed:
        return False
    if recipe.bits == 8:
        raise RecipeError("--mixed is about layers of 8 bits among layers of fewer; give --bits 4, 3 or 2")
    if recipe.symmetric is False:
        raise RecipeError("--mixed and --asymmetric exclude each other: zero points are opened with one scheme only")
    if experts:
        raise RecipeError("--mixed is not possible for mixtures of experts: they are opened with one scheme only")
    return True


def groups_of(structure: Structure) -> dict[str, tuple[LayerRef, ...]]:
    """Name of the first layer -> layers that must have one scheme, in execution order."""
    if structure.alike:
        return {structure.layers[0].name: structure.layers}
    if structure.apart:
        return {layer.name: (layer,) for layer in structure.layers}
    found: dict[str, list[LayerRef]] = {}
    for layer in structure.layers:
        found.setdefault(min(layer.fused_with, default=layer.name), []).append(layer)
    return {layers[0].name: tuple(layers) for layers in found.values()}


def with_eight_bits(plan: Plan, structure: Structure, damage: Mapping[str, float], eight: Scheme, share: float) -> Plan:
    """`plan` with the scheme `eight` for the groups of most damage a weight, up to `share` of the blocks' weights.

    damage: name of a group's first layer -> relative squared change of its block's output at the planned bits.
    """
    groups = groups_of(structure)
    sizes = {name: sum(la.shape[0] * la.shape[1] for la in layers) for name, layers in groups.items()}
    left = share * sum(sizes.values())
    middle = statistics.median(damage.values()) if damage else 0.0
    layers = dict(plan.layers)
    for name in sorted(groups, key=lambda n: (-damage.get(n, 0.0) / sizes[n], n)):
        few = plan.layers[name].scheme
        said = f"{few.bits} bits move the output of block {groups[name][0].block} by {damage.get(name, 0.0):.2%}"
        chosen = sizes[name] <= left and damage.get(name, 0.0) > 0
        if chosen:
            left -= sizes[name]
            said += f", {damage[name] / middle:.1f} times the median: 8 bits" if middle else ": 8 bits"
        for layer in groups[name]:
            old = layers[layer.name]
            layers[layer.name] = replace(old, scheme=eight if chosen else old.scheme, reason=said)
    dense = next((p.scheme.name for p in plan.layers.values() if p.scheme.kind == "dense"), "bfloat16")
    return replace(plan, layers=layers, predicted_bytes=predicted_bytes(layers, structure, dense))
