"""How well a model does on labelled rows: its outputs, the task's answers, the counts of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.core.errors import ModelError
from compress.core.numerics.bootstrap import Array
from compress.core.task import Context, Feature, Row, Task

SCORE_BATCH = 32


@dataclass(frozen=True)
class Part:
    """Rows of one split and their features; of training rows also the examples, see Task.examples."""

    rows: Sequence[Row]
    features: Sequence[Feature]
    examples: Sequence[tuple[Feature, ...]] = ()


def score(model: nn.Module, task: Task, context: Context, part: Part) -> Array:
    """The counts (rows, k) of `model` on `part`, see Task.counts. The model is left in eval mode."""
    outputs = outputs_of(model, task, context, part.features)
    return task.counts(task.answers(outputs, part.features, context), part.rows, context)


def outputs_of(model: nn.Module, task: Task, context: Context, features: Sequence[Feature]) -> list[Tensor]:
    """What the model gives for each feature, float32, without padding. The model is left in eval mode.

    Raises ModelError for what is not finite.
    """
    model.eval()
    device = next(model.parameters()).device
    order = sorted(range(len(features)), key=lambda n: len(features[n].inputs["input_ids"]))
    found: dict[int, Tensor] = {}
    with torch.inference_mode():
        for start in range(0, len(order), SCORE_BATCH):
            numbers = order[start : start + SCORE_BATCH]
            chosen = [features[n] for n in numbers]
            batch = {name: t.to(device) for name, t in task.collate(chosen, context).items() if name != "labels"}
            logits = task.outputs(model(**batch)).float().cpu()
            if logits.ndim > 2:
                logits = logits[:, -batch["input_ids"].shape[1] :]  # without learned positions before the text
            if not bool(torch.isfinite(logits).all()):
                raise ModelError("the model gives NaN or infinity on held-out rows")
            found |= {n: unpadded(logits[i], chosen[i], context) for i, n in enumerate(numbers)}
    return [found[n] for n in range(len(features))]


def unpadded(output: Tensor, feature: Feature, context: Context) -> Tensor:
    """Output (L, ...) of one feature without the positions that padding added; other shapes as they are."""
    length = len(feature.inputs["input_ids"])
    if output.ndim < 2:
        return output
    return output[-length:] if context.tokenizer.padding_side == "left" else output[:length]
