"""How well a model does on labelled rows: its outputs, the task's answers, the counts of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.core.errors import ModelError
from compress.core.numerics.bootstrap import Array
from compress.core.task import Context, Feature, Row, Task
from compress.core.writing import WritingTask


@dataclass(frozen=True)
class Part:
    """Rows of one split and their features."""

    rows: Sequence[Row]
    features: Sequence[Feature]


def score(model: nn.Module, task: Task, context: Context, part: Part) -> Array:
    """The counts (rows, k) of `model` on `part`, see Task.counts. The model is left in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    order = sorted(range(len(part.features)), key=lambda n: part.features[n].shape)
    found: dict[int, Tensor] = {}
    with torch.inference_mode():
        for start in range(0, len(order), task.score_batch):
            numbers = order[start : start + task.score_batch]
            features = [part.features[n] for n in numbers]
            batch = {name: t.to(device) for name, t in task.collate(features, context).items() if name != "labels"}
            if isinstance(task, WritingTask):
                found |= dict(zip(numbers, task.predict(model, batch, context).cpu(), strict=True))
                continue
            logits = task.outputs(model(**batch)).float().cpu()
            if logits.ndim > 2:
                logits = logits[:, -batch["input_ids"].shape[1] :]  # without learned positions before the text
            if not bool(torch.isfinite(logits).all()):
                raise ModelError("the model gives NaN or infinity on validation rows; lower --learning-rate")
            found |= {n: unpadded(logits[i], features[i], context) for i, n in enumerate(numbers)}
    outputs = [found[n] for n in range(len(part.features))]
    return task.counts(task.answers(outputs, part.features, context), part.rows, context)


def unpadded(output: Tensor, feature: Feature, context: Context) -> Tensor:
    """Output (L, ...) of one feature without the positions that padding added; other shapes as they are."""
    length = len(feature.inputs["input_ids"])
    if output.ndim < 2:
        return output
    return output[-length:] if context.tokenizer.padding_side == "left" else output[:length]
