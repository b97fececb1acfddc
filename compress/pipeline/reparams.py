"""Which reparametrisations a run has, and what is said of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from compress.core.types import BlockRef, LayerResult
from compress.pipeline.folding import Reparam
from compress.pipeline.prepare import Prepared
from compress.pipeline.replay import Replay, Trace
from compress.pipeline.rotate import Rotate
from compress.pipeline.smooth import Smooth

DONE = {
    "smooth": ("smoothed", "what the others read is used elsewhere too, or is no layer's own"),
    "awq": ("scaled by AWQ", "for the others nothing was gained, or nothing could be folded away"),
    "rotate": ("rotated", "only values of attention are, where they are a layer of their own"),
}
"""What was done, and why it was not done to more layers."""


@dataclass
class Scaled:
    """What compress.pipeline.scaling did, which is in the weights as they are read: nothing is left to do.

    layers: block -> names of the layers whose inputs are scaled."""

    layers: Mapping[int, Sequence[str]]
    name: str = "awq"

    def change(self, block: BlockRef, _: Replay, __: Sequence[Trace]) -> list[str]:
        """Their names."""
        return list(self.layers.get(block.index, ()))


def reparams_of(ready: Prepared, scaled: Mapping[int, Sequence[str]]) -> tuple[Reparam, ...]:
    """In the order in which they are done to each block. scaled: see Scaled."""
    recipe, model = ready.recipe, ready.checkpoint.model
    found: list[Reparam] = [Scaled(scaled)] if scaled else []
    if "rotate" in ready.reparams:
        found.append(Rotate(model, recipe.seed))
    if recipe.smooth:
        found.append(Smooth(model, recipe.smooth))
    return tuple(found)


def sentences(ready: Prepared, layers: Iterable[LayerResult]) -> list[str]:
    """How far each went that was asked for, or did anything."""
    recipe, results = ready.recipe, list(layers)
    counts = Counter(name for result in results for name in result.reparams.split(",") if name)
    asked = [
        *ready.reparams,
        *(["smooth"] if recipe.smooth else []),
        *(["awq"] if recipe.method == "awq" else []),
    ]
    found = []
    for name in dict.fromkeys([*asked, *counts]):
        done, rest = DONE[name]
        whole = counts[name] == len(results)
        found.append(f"The inputs of {counts[name]} of {len(results)} layers were {done}{'' if whole else f'; {rest}'}")
    return found
