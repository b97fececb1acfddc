"""Which reparametrisations a run has, and what is said of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from compress.core.types import LayerResult, torch_dtype
from compress.pipeline.awq import Awq
from compress.pipeline.collect import MakeCollector
from compress.pipeline.folding import Reparam
from compress.pipeline.prepare import Prepared
from compress.pipeline.rotate import Rotate
from compress.pipeline.smooth import Smooth
from compress.recipe import Recipe

DONE = {
    "smooth": ("smoothed", "what the others read is used elsewhere too, or is no layer's own"),
    "awq": ("scaled by AWQ", "for the others nothing was gained, or nothing could be folded away"),
    "rotate": ("rotated", "only values of attention are, where they are a layer of their own"),
}
"""What was done, and why it was not done to more layers."""


def reparams_of(ready: Prepared, make: MakeCollector) -> tuple[Reparam, ...]:
    """In the order in which they are done to each block; scales come last, they are not kept by rotations."""
    recipe, model = ready.recipe, ready.checkpoint.model
    found: list[Reparam] = []
    if "rotate" in recipe.reparams:
        found.append(Rotate(model, recipe.seed))
    if recipe.smooth:
        found.append(Smooth(model, recipe.smooth))
    if "awq" in recipe.reparams or any(plan.method == "awq" for plan in ready.plan.layers.values()):
        found.append(Awq(model, ready.plan, make, "awq" in recipe.reparams, torch_dtype(ready.dtype)))
    return tuple(found)


def sentences(recipe: Recipe, layers: Iterable[LayerResult]) -> list[str]:
    """How far each went."""
    results = list(layers)
    counts = Counter(name for result in results for name in result.reparams.split(",") if name)
    asked = [*recipe.reparams, *(["smooth"] if recipe.smooth else []), *(["awq"] if recipe.method == "awq" else [])]
    found = []
    for name in dict.fromkeys([*asked, *counts]):
        done, rest = DONE[name]
        whole = counts[name] == len(results)
        found.append(f"The inputs of {counts[name]} of {len(results)} layers were {done}{'' if whole else f'; {rest}'}")
    return found
