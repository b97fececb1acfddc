"""What `--effort` asks of a run beside its plan: blocks tuned as a whole, and what came of it in words."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from compress.core.registry import load
from compress.core.types import BlockResult, LayerResult, Plan
from compress.pipeline.blockwise import Tuner
from compress.pipeline.inputs import convert_options
from compress.recipe import TUNING, Recipe

METHOD = "rounding"
PER_BLOCK = 100  # steps of progress that a block counts as, whatever its tuning takes


def own_options(recipe: Recipe) -> dict[str, Any]:
    """Options of the method that solves layers: all but `tune.NAME`."""
    return {name: value for name, value in recipe.options.items() if not name.startswith(TUNING)}


def tuning_options(recipe: Recipe) -> Any:
    """Options of the tuning of blocks, None where there is none. Raises RecipeError as `convert_options` does."""
    if recipe.effort != "best":
        return None
    given = {n.removeprefix(TUNING): value for n, value in recipe.options.items() if n.startswith(TUNING)}
    return convert_options(load("block-method", METHOD).options, given, "the tuning of blocks (tune.NAME)")


def settled(recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
    """`recipe` with options of their own types. options: converted, of the method that solves layers."""
    tuning = tuning_options(recipe)
    given = [name for name in recipe.options if name.startswith(TUNING)]
    found = {} if tuning is None else {f"{TUNING}{name}": value for name, value in asdict(tuning).items()}
    return recipe.model_copy(update={"options": {**options, **{name: found[name] for name in given}}})


def tuner_of(recipe: Recipe, plan: Plan, blocks: int, report: Callable[[str, int, int], None]) -> Tuner | None:
    """Tunes the blocks of a run that asks for it, and reports how far it is."""
    options = tuning_options(recipe)
    if options is None:
        return None

    def along(block: int, done: int, steps: int) -> None:
        report("compressing", block * PER_BLOCK + PER_BLOCK * done // steps, blocks * PER_BLOCK)

    return Tuner(load("block-method", METHOD), options, recipe.seed, plan, along)


def report_of(recipe: Recipe, report: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """`report` for whole blocks, in the steps that `tuner_of` reports."""
    if recipe.effort != "best":
        return report
    return lambda stage, done, total: report(stage, done * PER_BLOCK, total * PER_BLOCK)


def with_gains(plan: dict[str, Any], layers: Sequence[LayerResult], blocks: Sequence[BlockResult]) -> dict[str, Any]:
    """plan.json with what tuning did to each layer: shares of codes and scales moved, and its block's error before and
    after; or why it was left as it was solved."""
    errors = {b.block: (b.solved_error, b.tuned_error) for b in blocks if b.solved_error is not None}
    lines = {name: dict(line) for name, line in plan["layers"].items()}
    for layer in layers:
        if layer.untuned:
            lines[layer.layer]["tuned"] = f"no: {layer.untuned}"
        elif layer.block in errors and layer.layer in lines:
            moved = {"codes": round(layer.recoded, 4), "scales": round(layer.rescaled, 4)}
            lines[layer.layer]["tuned"] = {
                **moved,
                "block_error": [float(f"{e:.4g}") for e in errors[layer.block] if e],
            }
    return {**plan, "layers": lines}


def outcome(recipe: Recipe, layers: Sequence[LayerResult], blocks: Sequence[BlockResult]) -> list[str]:
    """Sentences on what tuning did; none where it was not asked for."""
    if recipe.effort != "best":
        return []
    inside = [layer for layer in layers if layer.block >= 0]
    left = [layer for layer in inside if layer.untuned]
    kept = [1 - (b.tuned_error or 0) / b.solved_error for b in blocks if b.solved_error]
    said = []
    if kept:
        moved = statistics.fmean(layer.recoded for layer in inside if not layer.untuned)
        said.append(
            f"{len(inside) - len(left)} layers were tuned against the output of their blocks: its error on calibration "
            f"text fell by {statistics.median(kept):.1%} (median of {len(kept)} blocks), {moved:.1%} of codes moved"
        )
    elif not left:
        said.append("Nothing was tuned: no calibration text runs through this model's blocks")
    reasons: dict[str, int] = {}
    for layer in left:
        reasons[layer.untuned] = reasons.get(layer.untuned, 0) + 1
    return [*said, *(f"{count} layers were left as they were solved: {why}" for why, count in reasons.items())]
