"""Which schemes are asked about for each layer: what the user lists, where it divides the layer."""

from __future__ import annotations

from collections.abc import Sequence

from compress.core.errors import RecipeError
from compress.core.types import LayerPlan, LayerRef, Scheme, Structure
from compress.plan.uniform import Rules, choose_group

WIDER = (3, 4)
"""Bits at which groups up to WIDE times as long are a choice too: an eighth of a bit for a fifth more error, which is a
step between whole bits. Fewer bits lose more by it, more have room for their scales."""
WIDE, LONGEST = 4, 256
POWERS = (2, 3, 4, 8)
"""Bits worth timing: the others take the room and the time of the next of these in an operator."""


def candidates(
    names: Sequence[str], structure: Structure, rules: Rules, method: LayerPlan, encoder: bool, few: bool = False
) -> dict[str, tuple[LayerPlan, ...]]:
    """Layer -> the plans that may be chosen for it, fewest bits first; embedding and head: int8 rows.

    names: of schemes; none: all bits that the formats hold, without zero points, which servers open with one scheme a
    model only, and at WIDER bits longer groups too. few: POWERS only. method: whose method and options are taken.
    Raises RecipeError for a scheme that no layer can have.
    """
    found: dict[str, tuple[LayerPlan, ...]] = {}
    group, _ = choose_group("auto", structure.layers, rules.caps, encoder)
    for layer in structure.layers:
        asked = [_parsed(name, rules, layer) for name in names] or _usual(layer, rules, group, few)
        fits = [scheme for scheme in asked if _divides(scheme, layer)]
        found[layer.name] = tuple(
            LayerPlan(layer.name, scheme, method.method, "a candidate", method.options)
            for scheme in sorted(fits, key=lambda s: s.bits_per_weight(layer.shape))
        )
    if not any(found.values()):
        raise RecipeError(
            f"no layer of {structure.architecture} can have any of {', '.join(names)}; leave out --schemes"
        )
    int8 = rules.scheme(8, -1, True)
    for end in (structure.embedding, structure.head):
        if end is not None and end.tied_to is None:
            found[end.name] = (LayerPlan(end.name, int8, "rtn", "a candidate"),)
    return found


def _usual(layer: LayerRef, rules: Rules, group: int, few: bool) -> list[Scheme]:
    """What is asked about a layer when nobody says; group: of the model."""
    asked = [bits for bits in rules.caps.bits if not few or bits in POWERS]
    found = [rules.scheme(bits, group if bits < 8 else -1, True, layer.container) for bits in asked]
    if few:
        return found
    longest = min(LONGEST, WIDE * group)
    wide = max((size for size in range(group, longest + 1, group) if layer.shape[1] % size == 0), default=group)
    if 0 < group < wide:
        found += [rules.scheme(bits, wide, True, layer.container) for bits in WIDER if bits in rules.caps.bits]
    return found


def _parsed(name: str, rules: Rules, layer: LayerRef) -> Scheme:
    scheme = Scheme.parse(name)
    if scheme.kind == "dense":
        raise RecipeError(f"--schemes {name}: a layer that is kept loses nothing; list schemes with codes")
    if scheme.kind == "int":
        return rules.scheme(scheme.bits, scheme.group_size, scheme.symmetric, layer.container)
    return scheme


def _divides(scheme: Scheme, layer: LayerRef) -> bool:
    return scheme.group_size == -1 or layer.shape[1] % scheme.group_size == 0
