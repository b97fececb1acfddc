"""Every task: rows -> features -> tiny model -> finite loss -> answers -> counts -> figures, whatever the padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from compress.core.registry import load, names
from compress.core.task import TRUTHS, Context, Feature, Row, Task, read_part
from compress.core.writing import WritingTask
from compress.pipeline.task_text import batches, stacked, texts_of
from compress.train.score import Part, score, unpadded
from tests.task_rows import ROWS
from tests.tiny import randomize, tiny_config, tiny_tokenizer

LENGTH = 48
DECODERS = ("AutoModelForCausalLM",)


# tasks that write are in tests/integration/test_writing.py: their answers are generated, by other models
NAMES = [name for name in names("task") if not isinstance(load("task", name), WritingTask)]


def task_of(name: str) -> Task:
    task: Task = load("task", name)
    assert name in ROWS, f"give tests/task_rows.py a few rows of {name}, different in length, one longer than {LENGTH}"
    return task


def context_of(task: Task, rows: Sequence[Row], side: str = "right", labelled: bool = True) -> Context:
    """A context as `tune` makes it; without the columns that hold answers when not `labelled`."""
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    columns = task.columns(rows, {}, "rows")
    settings, _ = task.survey(rows, columns)
    labels = task.labels(rows, columns, "rows")
    answers = {field.role for field in task.fields if field.answer}
    read = {role: name for role, name in columns.items() if labelled or role not in answers}
    return Context(tokenizer, read, labels, LENGTH, settings=settings)


def model_of(task: Task, labels: Sequence[str]) -> Any:
    """A random model of the task's own class, one that positions do not shift: masks alone tell padding."""
    config = tiny_config("llama" if task.auto in DECODERS else "bert")
    if task.auto not in DECODERS:
        config.id2label = dict(enumerate(labels)) or config.id2label
        for name, value in task.config.items():
            setattr(config, name, value)
    torch.manual_seed(0)
    model = getattr(transformers, task.auto).from_config(config)
    randomize(model)
    return model.eval()


def sound_rows(task: Task) -> list[Row]:
    rows = ROWS[task.name]
    columns = task.columns(rows, {}, "rows")
    assert len(task.texts(rows, columns, "rows")) == len(task.strata(rows, columns)) == len(rows)
    found, _ = task.sound(rows, columns)
    assert task.sound(found, columns)[0] == found  # what was mended stays as it is
    return found


def outputs_of(model: Any, task: Task, context: Context, features: Sequence[Feature]) -> list[torch.Tensor]:
    """What the model says of each feature, all in one padded batch."""
    batch = {n: t for n, t in task.collate(features, context).items() if n not in TRUTHS}
    pool_text_only(model, batch["attention_mask"])
    with torch.inference_mode():
        found = read_part(task.outputs(model(**with_positions(batch, context)), batch), batch)
    return [unpadded(found[n], feature, context) for n, feature in enumerate(features)]


def with_positions(batch: dict[str, torch.Tensor], context: Context) -> dict[str, torch.Tensor]:
    """The batch with positions that count text only, so that padding on the left moves nothing."""
    mask = batch["attention_mask"]
    ids = (mask.cumsum(-1) - 1).clamp_min(0)
    return {**batch, "position_ids": ids.view(-1, ids.shape[-1])} if mask.ndim == 2 else {**batch, "position_ids": ids}


def pool_text_only(model: Any, mask: torch.Tensor) -> None:
    """Let bert's pooler take the mean of the text: its own takes position 0, padding or not."""
    pooler = getattr(getattr(model, "bert", None), "pooler", None)
    weights = mask.view(-1, mask.shape[-1], 1).float()
    if pooler is not None:
        pooler.forward = lambda hidden: torch.tanh(pooler.dense((hidden * weights).sum(1) / weights.sum(1)))


@pytest.mark.parametrize("name", NAMES)
def test_from_rows_to_figures(name: str) -> None:
    task = task_of(name)
    rows = sound_rows(task)
    context = context_of(task, rows)
    features = task.features(rows, context)
    assert {feature.row for feature in features} == set(range(len(rows)))
    assert [feature.row for feature in features] == sorted(feature.row for feature in features)
    assert all(feature.shape[-1] <= LENGTH for feature in features)
    assert len({feature.shape for feature in features}) > 1
    model = model_of(task, context.labels)
    counts = score(model, task, context, Part(rows, features))
    assert counts.dtype == np.float64
    assert counts.shape[0] == len(rows)
    assert np.isfinite(counts).all()
    figures = task.figures(np.stack([counts.sum(0), 2 * counts.sum(0)]))
    assert figures.shape == (2, len(task.metrics))
    for metric, value, twice in zip(task.metrics, *figures, strict=True):
        if metric.lower_is_better:
            assert value >= 1.0
        elif math.isfinite(value):
            assert -1.0 <= value <= 1.0
        if metric.name != "spearman":  # whose sums are not those of rows drawn twice
            assert twice == pytest.approx(value, nan_ok=True)  # a figure is of the rows, not of how many there are


@pytest.mark.parametrize("name", [name for name in NAMES if load("task", name).tunable])
def test_the_loss_is_finite_and_teaches(name: str) -> None:
    """A few steps on one batch lower its loss, and change nothing that is not a number."""
    task = task_of(name)
    rows = sound_rows(task)
    context = context_of(task, rows)
    model = model_of(task, context.labels)
    batch = task.collate(task.features(rows, context), context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        own = task.loss(model, batch, context)
        loss = model(**batch).loss if own is None else own
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(math.isfinite(value) and value > 0 for value in losses)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_side_of_the_padding_changes_no_answer(name: str) -> None:
    task = task_of(name)
    rows = sound_rows(task)
    counts = []
    for side in ("right", "left"):
        context = context_of(task, rows, side)
        features = task.features(rows, context)
        batch = task.collate(features, context)
        padded = batch["attention_mask"] == 0
        assert bool(padded[..., 0 if side == "left" else -1].any())
        model = model_of(task, context.labels)
        answers = task.answers(outputs_of(model, task, context, features), features, context)
        counts.append(task.counts(answers, rows, context))
    np.testing.assert_allclose(counts[0], counts[1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_says_what_rows_say_alone(name: str) -> None:
    task = task_of(name)
    rows = sound_rows(task)
    context = context_of(task, rows)
    features = task.features(rows, context)
    model = model_of(task, context.labels)
    together = outputs_of(model, task, context, features)
    for feature, output in zip(features, together, strict=True):
        alone = outputs_of(model, task, context, [feature])[0]
        torch.testing.assert_close(output[: len(alone)], alone, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_the_loop_hold_what_collate_holds(name: str) -> None:
    """Rows of one shape make a batch; a mask is there only where a row's own texts are padded, and tells the truth."""
    task = task_of(name)
    rows = sound_rows(task)
    context = context_of(task, rows)
    features = task.features(rows, context)
    model = model_of(task, context.labels)
    seen: list[int] = []
    for batch in batches(features):
        inputs = stacked([features[n] for n in batch])
        assert not set(inputs) & set(TRUTHS)
        mask = inputs.get("attention_mask")
        assert mask is None or not bool(mask.all())
        if mask is not None:
            assert int(mask.sum()) == sum(len(ids) for n in batch for ids in texts_of(features[n]))
        ids = inputs["input_ids"]
        pool_text_only(model, torch.ones_like(ids) if mask is None else mask)
        with torch.inference_mode():
            found = task.outputs(model(**inputs), inputs)
        for n, output in zip(batch, found, strict=True):
            alone = outputs_of(model, task, context, [features[n]])[0]
            torch.testing.assert_close(output, alone, atol=2e-4, rtol=1e-3)
        seen += batch
    assert sorted(seen) == list(range(len(features)))


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_answers_are_answered(name: str) -> None:
    """Without the columns of answers the same ids are read and as many answers come out."""
    task = task_of(name)
    rows = sound_rows(task)
    known, blind = context_of(task, rows), context_of(task, rows, labelled=False)
    hidden = {column for role, column in known.columns.items() if role not in blind.columns}
    bare = [{column: value for column, value in row.items() if column not in hidden} for row in rows]
    features = task.features(bare, blind)
    assert [f.inputs["input_ids"] for f in features] == [f.inputs["input_ids"] for f in task.features(rows, known)]
    model = model_of(task, known.labels)
    assert not hidden or "labels" not in features[0].inputs or task.words
    answers = task.answers(outputs_of(model, task, blind, features), features, blind)
    assert len(answers) == len(rows)
    task.collate(features, blind)


@pytest.mark.parametrize("name", NAMES)
def test_distributions_that_are_compared(name: str) -> None:
    """Logits of n distributions of a feature, padding in none; None for outputs that are no logits."""
    task = task_of(name)
    rows = sound_rows(task)
    context = context_of(task, rows)
    features = task.features(rows, context)
    model = model_of(task, context.labels)
    for feature, output in zip(features, outputs_of(model, task, context, features), strict=True):
        found = task.compared(output, feature)
        assert found is not None or not task.classes
        if found is not None:
            assert found.ndim == 2
            assert bool(torch.isfinite(found).all())
            assert found.shape[1] in (len(context.labels), *feature.shape)
