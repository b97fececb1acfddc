"""The sentence on whether more calibration text would change the plan, from what each text said of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from compress.core.journal import Journal
from compress.core.types import Sensitivity
from compress.pipeline.prepare import Prepared
from compress.pipeline.profiling import recorded, roles_of
from compress.plan.pooling import scores
from compress.plan.shares import Shares
from compress.plan.stability import CHANGES, LEAST, MEAN_BITS, Planner, Stability, at_mean_bits, means, stability

MORE = 128
"""Sequences that the sentence asks about."""


def steadiness(
    ready: Prepared,
    journal: Journal,
    found: Sequence[Sensitivity],
    planner: Planner | None = None,
    share: float = 1.0,
    left: Shares | None = None,
) -> dict[str, Any]:
    """How steady costs and plan are, for the record: figures of halves, and `said`, a sentence.

    found: the costs, of a `share` of the texts; left: what counts of those that the journal has. planner: of the
    budget; without one, plans of 3 and 4 bits a weight.
    What the journal holds decides: a resumed run says the same.
    """
    losses, said = recorded(journal)
    counts = np.array(said["counts"], np.float64)
    none = [0.0] * len(counts)
    sums = np.array([losses.get((one.layer, one.scheme), none) for one in found], np.float64).T
    if left is not None:
        sums *= left.factors(found, {layer.name: layer.role for layer in ready.structure.layers})
    made = [at_mean_bits(bits, ready.structure, found) for bits in MEAN_BITS] if planner is None else [planner]
    planners = [plan for plan in made if plan is not None]
    there, what = _texts(ready)
    texts = round(share * there)
    roles = roles_of(ready, journal)
    read = means if roles is None else partial(scores, found, roles)
    steady = stability(found, sums, counts, planners, ready.recipe.seed, read)
    if steady is None:
        few = f"{texts} {what} are too few to tell whether more would change the plan; give {LEAST} or more."
        return {"texts": texts, "said": few}
    figures = {"spearman": steady.spearman, "differ": steady.differ, "layers": steady.layers, "regret": steady.regret}
    return {"texts": texts, **figures, "said": _said(ready, steady, texts, what, bool(planners))}


def _texts(ready: Prepared) -> tuple[int, str]:
    """How many sequences or rows calibrate, and what they are called."""
    if ready.text is not None:
        return len({feature.row for feature in ready.text.calibration}), "rows"
    assert ready.data is not None
    return len(ready.data.calibration.sequences), "sequences"


def _said(ready: Prepared, steady: Stability, texts: int, what: str, planned: bool) -> str:
    ranks = f"ranks of layers correlate at {steady.spearman:.2f}"
    if not planned:
        return f"There is no choice of schemes to make a plan of: by halves of the {texts} {what} {ranks}."
    saved = steady.saved(texts, MORE)
    verb = "would" if saved >= CHANGES else "would not"
    told = (
        f"{MORE} more {what} {verb} change the plan: about {steady.moved(texts, MORE):.0f} of {steady.layers} layers "
        f"otherwise, for {100 * saved:.1f} % less expected loss (half of the {texts}: {steady.differ:.0f} otherwise, "
        f"{100 * steady.regret:.1f} % more; {ranks})"
    )
    if saved < CHANGES:
        return f"{told}."
    samples = -(-ready.recipe.samples * steady.enough(texts, MORE) // texts)
    scarce = ready.text is None and texts < ready.recipe.samples
    remedy = "give more text, this is all there is" if scarce else f"give --samples {1 << (samples - 1).bit_length()}"
    return f"{told}; {remedy}."
