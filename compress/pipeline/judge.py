"""Held-out text at the end of the loop: logits of both models from their last hidden states, compared as they come."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.checkpoint import Checkpoint
from compress.core.numerics.paired import Pair
from compress.core.safetensors_file import pending, write_file
from compress.core.types import Measurement, Structure, TokenSet
from compress.measure.quality import (
    DocumentScore,
    HiddenScore,
    pair,
    score_chunk,
    score_hidden,
    summarise,
    summarise_hidden,
)
from compress.pipeline.outside import Outside, Which
from compress.pipeline.replay import Replay, Trace, text_mask
from compress.pipeline.stream import Streams
from compress.pipeline.task_text import TaskScores, TaskText

CHUNK_LOGITS = 2_000_000  # logits held per model: 8 MB in float32
PROBE_TOKENS = 128
PROBE_LOGITS = 8_000_000  # of the probe at most, 32 MB: fewer tokens where the vocabulary is large


def kind_of(model: nn.Module) -> str:
    """`causal`, `seq2seq` or `encoder`: what the model's outputs can be compared by."""
    from transformers.models.auto import modeling_auto

    name = type(model).__name__
    if name in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return "causal"
    tables = (
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    )
    if any(name in table.values() for table in tables):
        return "seq2seq"
    return "encoder"


def reads_only(model: nn.Module) -> bool:
    """Whether the model reads whole texts and writes none, as classifiers, taggers and embedders do."""
    text = getattr(model, "main_input_name", "input_ids") == "input_ids"
    return text and kind_of(model) == "encoder" and not getattr(model.config, "is_encoder_decoder", False)


def judge(
    checkpoint: Checkpoint, structure: Structure, streams: Streams, outside: Outside, subject: str, heldout: TokenSet
) -> tuple[list[Measurement], Pair | None]:
    """Perplexity, KL and agreement (language models), and perplexity by document; or the cosine of the last hidden
    states (encoders).

    Memory: both models' vocabulary matrices and two chunks of logits.
    """
    kind = kind_of(checkpoint.model)
    if not streams.original:
        return [], None
    if kind == "encoder":
        return [_hidden(structure, streams, subject, heldout)], None
    scores: list[DocumentScore] = []
    documents = iter(heldout.documents)
    with Replay(checkpoint.model, structure.blocks) as replay, outside.vocabularies(("original", "compressed")) as use:
        for original, compressed in zip(streams.original, streams.compressed, strict=True):
            numbers = [next(documents) for _ in range(_rows(original))]
            for rows in _chunks(checkpoint.model, original):
                use("original")
                a = logits_at(replay, original, rows)
                use("compressed")
                b = logits_at(replay, compressed, rows)
                targets = _target_ids(original)[:, rows + 1]
                for row, number in enumerate(numbers):
                    scores.append(score_chunk(number, a[row], b[row], targets[row]))
    return summarise(scores, subject), pair(scores)


def judge_task(
    checkpoint: Checkpoint, structure: Structure, streams: Streams, outside: Outside, text: TaskText, subject: str
) -> tuple[list[Measurement], Pair | None]:
    """The task's own figures of both models on held-out rows, and the first of them by row.

    Memory: the outputs of all rows, no vocabulary.
    """
    found: list[dict[int, Tensor]] = []
    both: tuple[tuple[Which, list[Trace]], ...] = (("original", streams.original), ("compressed", streams.compressed))
    with Replay(checkpoint.model, structure.blocks) as replay:
        for which, traces in both:
            outputs: dict[int, Tensor] = {}
            with outside.installed(which, vocabulary=False):
                for batch, trace in zip(text.heldout_batches, traces, strict=True):
                    logits = text.task.outputs(replay.finish(trace), trace.inputs).float()
                    outputs |= {number: logits[i].clone() for i, number in enumerate(batch)}
            found.append(outputs)
    return TaskScores(text, found[0], found[1]).measurements(subject)


def _rows(trace: Trace) -> int:
    return int(next(iter(trace.inputs.values())).shape[0])


def _target_ids(trace: Trace) -> Tensor:
    return trace.inputs["decoder_input_ids" if "decoder_input_ids" in trace.inputs else "input_ids"]


def _chunks(model: nn.Module, trace: Trace) -> list[Tensor]:
    return _split(model, trace, torch.arange(_target_ids(trace).shape[1] - 1))


def _split(model: nn.Module, trace: Trace, positions: Tensor) -> list[Tensor]:
    """Positions by as many as logits may be held of; all at once where the model makes all logits anyway."""
    if not len(positions) or not _keeps_logits(model):
        return [positions] if len(positions) else []
    rows = max(1, CHUNK_LOGITS // (_vocabulary(model) * _target_ids(trace).shape[0]))
    return list(torch.split(positions, rows))


def _vocabulary(model: nn.Module) -> int:
    return int(getattr(model.config, "vocab_size", 1 << 17))


def _keeps_logits(model: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def logits_at(replay: Replay, trace: Trace, positions: Tensor) -> Tensor:
    """Logits (B, n, V) float32 of a trace at `positions`, by the model's own final layers."""
    if _keeps_logits(replay.model):
        return replay.finish(trace, logits_to_keep=positions).logits.float()  # type: ignore[no-any-return]
    return replay.finish(trace).logits[:, positions].float()  # type: ignore[no-any-return]


def _hidden(structure: Structure, streams: Streams, subject: str, heldout: TokenSet) -> Measurement:
    stack = structure.blocks[-1].stack
    scores: list[HiddenScore] = []
    documents = iter(heldout.documents)
    for original, compressed in zip(streams.original, streams.compressed, strict=True):
        mask = text_mask(original)
        rows = _hidden_rows(original, stack), _hidden_rows(compressed, stack)
        for n, (a, b) in enumerate(zip(*rows, strict=True)):
            if mask is not None and mask.shape[1] == len(a):
                a, b = a[mask[n]], b[mask[n]]
            scores.append(score_hidden(next(documents), a, b))
    return summarise_hidden(scores, subject)


def _hidden_rows(trace: Trace, stack: str) -> Tensor:
    """Hidden states (B, L, D); xlnet keeps them as (L, B, D)."""
    hidden = trace.hidden[stack]
    turned = hidden.shape[:2] == _target_ids(trace).shape[::-1] != _target_ids(trace).shape
    return hidden.transpose(0, 1) if turned else hidden


def write_probe(
    path: Path, checkpoint: Checkpoint, structure: Structure, streams: Streams, outside: Outside, alone: bool = False
) -> None:
    """Keep inputs and outputs of the compressed model for one held-out batch: what the artifact must reproduce.

    All rows go in, so that sums run in the order they had here: where inputs are rounded to int8, a value that falls
    on the other side of a tie moves what follows by as much as the rounding does. Outputs are kept of the first rows,
    up to PROBE_LOGITS numbers; of models that write, of one row. alone: only the first row goes in, for models whose
    rounding depends on what else is in a batch. The file's metadata names the model's class: an encoder may have been
    opened without the head its config names.
    """
    trace = streams.compressed[0]
    rows = 1 if alone else _rows(trace)
    with Replay(checkpoint.model, structure.blocks) as replay, outside.vocabularies(("compressed",)) as use:
        use("compressed")
        if kind_of(checkpoint.model) == "encoder":
            output = _first_tensor(replay.finish(trace))[:rows, :PROBE_TOKENS]
            output = output[: max(1, PROBE_LOGITS // output[0].numel())].clone()
        else:
            chunks = [logits_at(replay, trace, some)[:1].clone() for some in _probed(checkpoint.model, trace)]
            output = torch.cat(chunks, 1)
    tensors = {f"input.{name}": value[:rows].clone() for name, value in trace.inputs.items()}
    named = {name: pending(tensor.contiguous()) for name, tensor in {**tensors, "output": output}.items()}
    write_file(path, named, {"model_class": type(checkpoint.model).__name__})


def _probed(model: nn.Module, trace: Trace) -> list[Tensor]:
    """The first positions, as many at once as logits may be held of all sequences of the batch."""
    length = _target_ids(trace).shape[1]
    count = max(1, min(PROBE_TOKENS, PROBE_LOGITS // _vocabulary(model), length))
    return _split(model, trace, torch.arange(count))


def _first_tensor(output: Any) -> Tensor:
    return next(value for value in output.to_tuple() if isinstance(value, Tensor) and value.is_floating_point())


def prompts_of(sequences: Sequence[Tensor], tokenizer: Any, count: int, tokens: int = 24) -> list[str]:
    """The beginnings of held-out documents as text: prompts for sample generations."""
    return [tokenizer.decode(ids[:tokens], skip_special_tokens=True).strip() for ids in sequences[:count]]
