"""Which reparametrisations a run has, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterable

from compress.core.types import LayerResult, torch_dtype
from compress.pipeline.awq import Awq
from compress.pipeline.collect import MakeCollector
from compress.pipeline.folding import Reparam
from compress.pipeline.prepare import Prepared
from compress.pipeline.rotate import Rotate
from compress.pipeline.smooth import Smooth
from compress.recipe import Recipe

DONE = {"smooth": "smoothed", "awq": "scaled by AWQ", "rotate": "rotated"}


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
    asked = [*recipe.reparams, *(["smooth"] if recipe.smooth else []), *(["awq"] if recipe.method == "awq" else [])]
    found = []
    for name in dict.fromkeys(asked):
        count = sum(name in result.reparams.split(",") for result in results)
        rest = "" if count == len(results) else "; what the others read is used elsewhere too, or is no layer's own"
        rest = "; for the others nothing was gained, or could be folded away" if rest and name == "awq" else rest
        found.append(f"The inputs of {count} of {len(results)} layers were {DONE[name]}{rest}")
    return found
