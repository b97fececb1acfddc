"""`--max-drop`: how much worse the compressed model may answer, what plans are expected to do, and the proof.

The proof is a bound for unseen rows at 95 %, from held-out rows that nothing was chosen by: plans are chosen by
calibration text. Two plans are tried at most, the second one larger, and the 5 % are divided between them (weighted
Bonferroni), so that the claim holds for whichever is shipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from compress.core.errors import BudgetError, RecipeError
from compress.core.numerics.bootstrap import Array
from compress.core.numerics.paired import Pair, fewest_rows, rows_needed, upper
from compress.core.writing import WritingTask
from compress.pipeline.gauge import Seen
from compress.pipeline.judge import kind_of
from compress.pipeline.likelihood import COSINE
from compress.pipeline.prepare import Prepared

TRIES = (0.035, 0.015)
"""What each try may be wrong by: together 5 %."""
SPARE = 0.9
"""The share of the limit that a plan is chosen for."""
HARM = 0.1
"""Net loss expected of a changed answer: most are between two that are about as likely to be right."""
EFFECT = {True: 0.25, False: 1.0}
"""Mean square of what a changed answer does to the figure, in rows; of words with tags, where most changes are no
entity's (a tagger of tweets: .1), and of others."""
PER_COSINE = 1.2
"""Neighbours that change for the root of 1 - cosine; MiniLM: .11 to .14 at 4 bits, cosine .986."""


def parse_share(text: str) -> float:
    """`1%`, `0.5 %`, `0.01` as a share. Raises RecipeError for what is none between 0 and 1."""
    plain = text.strip()
    try:
        value = float(plain.removesuffix("%").strip()) / (100 if plain.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise RecipeError(f"--max-drop {text!r} is not understood; write it like 1% or 0.01")
    return value


@dataclass(frozen=True)
class Certificate:
    """What was shown of a built model. value: the drop on `rows` held-out rows; bound: of unseen ones, at 1 - alpha."""

    metric: str
    value: float
    bound: float
    alpha: float
    rows: int
    limit: float
    needed: int | None

    @property
    def holds(self) -> bool:
        """Whether the drop is shown to be within the limit."""
        return self.bound <= self.limit

    def to_json(self) -> dict[str, Any]:
        """For journal and record."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """What is shown."""
        confidence = f"{1 - self.alpha:.1%}".replace(".0%", "%")
        said = f"{self.metric} drops by at most {self.bound:.2%} on unseen rows ({confidence} sure, {self.rows:,} rows"
        said += f"; measured {self.value:.2%})"
        if self.holds:
            return f"{said}: within --max-drop {self.limit:.2%}"
        if self.needed is None:
            return f"{said}, more than --max-drop {self.limit:.2%}"
        return f"{said}: too few rows to show {self.limit:.2%}, about {self.needed:,} are needed"


def metric_of(ready: Prepared) -> str:
    """What `--max-drop` is about. Raises RecipeError when the data gives no such figure."""
    text = ready.text
    if text is not None and not isinstance(text.task, WritingTask):
        return text.task.metrics[0].name
    if kind_of(ready.checkpoint.model) != "encoder":
        return "perplexity"
    raise RecipeError(
        f"--max-drop is about a task's figure, and there is none for {ready.opened.name} on this data: give --data "
        "with answers (labels, tags, passages), or --max-bytes"
    )


def check_rows(ready: Prepared) -> None:
    """Before any work. Raises BudgetError when there are fewer held-out rows than the limit can be shown with."""
    limit = parse_share(ready.recipe.max_drop)
    metric = metric_of(ready)
    assert ready.data is not None
    if ready.text is None or isinstance(ready.text.task, WritingTask):
        if len(set(ready.data.heldout.documents)) < 2:
            raise BudgetError("--max-drop needs two held-out documents at least; give more --data or --eval-samples")
        return
    rows, needed = len(ready.text.rows), fewest_rows(TRIES[0], limit)
    if rows < needed:
        least = -math.log(TRIES[0]) / max(rows, 1) * 1.05
        raise BudgetError(
            f"{rows:,} held-out rows cannot show that {metric} drops by less than {limit:.2%}, not even if no answer "
            f"changes; give {needed:,} or more" + (f", or --max-drop {least:.1%}" if least < 0.5 else "")
        )


def certified(ready: Prepared, pair: Pair | None, failed: int, last: bool) -> Certificate:
    """What the built model shows. failed: tries before it; last: whether the rest of the 5 % is its own."""
    limit = parse_share(ready.recipe.max_drop)
    alpha = sum(TRIES[failed:]) if last else TRIES[failed]
    if pair is None:
        raise RecipeError(f"--max-drop: {metric_of(ready)} cannot be computed on the held-out rows; give --max-bytes")
    bound = upper(pair, alpha, ready.recipe.seed)
    needed = rows_needed(pair, bound, limit)
    return Certificate(metric_of(ready), pair.value(), bound, alpha, pair.rows, limit, needed)


def expected_bounds(
    ready: Prepared, seen: Sequence[Seen], counts: Sequence[int], unit: str, doubt: float
) -> list[float]:
    """For each plan, what `certified` would say of it, as far as calibration text tells.

    doubt: the original's on held-out rows over that on the calibration text. Of rows that a model was trained on it is
    surer, and their answers change less: a change d of logits costs d^T (diag(p) - p p^T) d / 2, in proportion to it.
    """
    if metric_of(ready) == "perplexity":
        return [upper(_nats(one, counts), TRIES[0], ready.recipe.seed) for one in seen]
    assert ready.text is not None
    task, one = ready.text.task, 1 / len(ready.text.rows)
    roots = np.sqrt(np.array([sum(plan.losses) / sum(counts) for plan in seen]).clip(0))
    shares = (math.sqrt(doubt) * _rate(seen, roots, unit) * roots).clip(0, 1)
    weight = _weight(ready)
    spread = np.sqrt((EFFECT[task.words] * weight**2 * shares + one) * one)
    found = HARM * weight * shares + one + NormalDist().inv_cdf(1 - TRIES[0]) * spread
    return [float(value) for value in found]


def _rate(seen: Sequence[Seen], roots: Array, unit: str) -> float:
    """Changed answers of a row for the root of the loss: one figure from all plans, since of good ones too few change
    to count them; as if one row more had changed at a loss of 1."""
    if unit == COSINE:
        return PER_COSINE
    changed = sum(sum(one.changed) for one in seen)
    seen_roots = sum(root * sum(one.rows) for one, root in zip(seen, roots, strict=True))
    return float((changed + 1) / (seen_roots + 1))


def _weight(ready: Prepared) -> float:
    """What one changed answer is in rows: of tagged texts, rows for each entity."""
    assert ready.text is not None
    things = sum(ready.text.task.balance(ready.text.rows, ready.text.context.columns).values())
    return max(1.0, len(ready.text.rows) / things) if things else 1.0


def _nats(one: Seen, counts: Sequence[int]) -> Pair:
    first = np.array([(n, nats[0]) for n, nats in zip(counts, one.nats, strict=True)], dtype=np.float64)
    second = np.array([(n, nats[1]) for n, nats in zip(counts, one.nats, strict=True)], dtype=np.float64)
    return Pair(first, second, lambda a, b: np.exp(np.minimum((b[:, 1] - a[:, 1]) / a[:, 0], 700.0)) - 1)
