"""What a training run leaves to this machine and to its rows: batch size, bfloat16, rows of rare classes.

What was tried out is written to the journal, so that a run that goes on after a kill goes on with the same answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from compress.core.journal import Journal
from compress.core.task import Context
from compress.pipeline.labelled import Labelled
from compress.recipe import TuneRecipe
from compress.train import fit, loop
from compress.train.resample import resampled
from compress.train.score import Part
from compress.train.tuning import Tuning


def settled(
    model: Any, labelled: Labelled, context: Context, part: Part, settings: loop.Settings, journal: Journal
) -> tuple[loop.Settings, list[str]]:
    """`settings` with the batch size that fits and the faster dtype, where the recipe asks for them, and sentences.

    part: training rows. Raises ModelError when not one row fits into memory.
    """
    recipe = settings.recipe
    if not recipe.find_batch_size and recipe.bf16 != "auto":
        return settings.with_pace(recipe.batch_size, recipe.accumulate, recipe.bf16 == "on"), []
    known = journal.last("settled")
    if known is None:
        known = _tried(model, labelled, context, part, settings)
        journal.append("settled", **known)
    size, gain = int(known["batch_size"]), known["bf16_gain"]
    accumulate = max(1, round(recipe.batch_size * recipe.accumulate / size))
    notes = []
    if size < recipe.batch_size:
        notes.append(f"{recipe.batch_size} rows did not fit into memory at once: {size} are used, and {accumulate} "
                     "forward passes for a step.")  # fmt: skip
    elif recipe.find_batch_size:
        notes.append(f"{size} rows at once fit into memory.")
    faster = recipe.bf16 == "on" or (gain is not None and gain > fit.FASTER)
    if gain is not None:
        notes.append(f"A step in bfloat16 is {gain:.2f} times as fast as in float32 here: "
                     f"{'bfloat16' if faster else 'float32'} is used.")  # fmt: skip
    return settings.with_pace(size, accumulate, faster), notes


def _tried(model: Any, labelled: Labelled, context: Context, part: Part, settings: loop.Settings) -> dict[str, Any]:
    """The largest batch that fits and how much faster bfloat16 is, by steps on the longest rows; None: not asked."""
    recipe = settings.recipe

    def length(example: loop.Example) -> int:
        return max(feature.shape[-1] for feature in example)

    def loss(examples: Sequence[loop.Example]) -> Tensor:
        return loop.step_loss(model, examples, labelled.task, context, settings.weights)

    if recipe.checkpointing:
        model.gradient_checkpointing_enable()
    longest = sorted(part.examples, key=length, reverse=True)
    start = min(recipe.batch_size, len(longest))
    size = fit.largest_batch(model, longest, loss, start) if recipe.find_batch_size else start
    middle = longest[max(0, len(longest) // 2 - size // 2) :][:size]
    gain = fit.bf16_gain(model, middle, loss) if recipe.bf16 == "auto" else None
    return {"batch_size": recipe.batch_size if size == start else size, "bf16_gain": gain}


def balanced(labelled: Labelled, part: Part, recipe: TuneRecipe) -> tuple[Part, list[str]]:
    """Training rows drawn anew as --resample over or under asks, and a sentence that says how many there are now."""
    if recipe.resample not in ("over", "under"):
        return part, []
    labels = labelled.task.strata(part.rows, labelled.columns)
    numbers = resampled(labels, recipe.resample, recipe.seed)
    rows = [part.rows[n] for n in numbers]
    examples = [part.examples[n] for n in numbers]
    before, after = Counter(labels), Counter(labels[n] for n in numbers)
    said = (f"--resample {recipe.resample}: {len(labels)} training rows ({min(before.values())} to "
            f"{max(before.values())} a class) became {len(numbers)} ({min(after.values())} a class).")  # fmt: skip
    return Part(rows, [feature for example in examples for feature in example], examples), [said]


def class_weights(labelled: Labelled) -> tuple[float, ...]:
    """Of each class in the loss: rows / (classes x rows of the class), of training rows; scikit-learn's `balanced`.

    A class without rows has weight 1, which nothing is multiplied by.
    """
    rows = [labelled.rows[n] for n in labelled.division.train]
    counts = labelled.task.balance(rows, labelled.columns)
    return tuple(len(rows) / (len(counts) * counts[name]) if name in counts else 1.0 for name in labelled.labels)


def rate_of(recipe: TuneRecipe, tuning: Tuning) -> float:
    """The highest step size: the user's, else the method's."""
    return recipe.learning_rate or tuning.rate
