"""How well a model does on labelled rows: its outputs, the task's answers, the counts of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.core.errors import ModelError
from compress.core.numerics.bootstrap import Array
from compress.core.task import TRUTHS, Context, Feature, Row, Task
from compress.core.writing import WritingTask


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
    order = sorted(range(len(features)), key=lambda n: features[n].shape[::-1])
    found: dict[int, Tensor] = {}
    with torch.inference_mode():
        for start in range(0, len(order), task.score_batch):
            numbers = order[start : start + task.score_batch]
            chosen = [features[n] for n in numbers]
            batch = {name: tensor.to(device) for name, tensor in task.collate(chosen, context).items()}
            if isinstance(task, WritingTask):
                read = {name: tensor for name, tensor in batch.items() if name not in TRUTHS}
                found |= dict(zip(numbers, task.predict(model, read, context).cpu(), strict=True))
                continue
            logits = task.run(model, batch).float().cpu()
            if not bool(torch.isfinite(logits).all()):
                raise ModelError("the model gives NaN or infinity on held-out rows")
            found |= {n: unpadded(logits[i], chosen[i], context) for i, n in enumerate(numbers)}
    return [found[n] for n in range(len(features))]


def unpadded(output: Tensor, feature: Feature, context: Context) -> Tensor:
    """Output (L, ...) of one feature without the positions that padding added; other shapes as they are."""
    length = feature.shape[-1]
    if output.ndim < 2:
        return output
    return output[-length:] if context.tokenizer.padding_side == "left" else output[:length]
