"""What is traced of models that read whole texts: classifiers, taggers, embedders; inputs and outputs as optimum names
them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.onnxfile.graph import Traced, skeleton, trace
from export.onnxfile.rewrite import Writer, rewrite
from export.source import Source

ROWS, LENGTH = 2, 12
AXES = {0: "batch_size", 1: "sequence_length"}
CHOICES = {0: "batch_size", 1: "num_choices", 2: "sequence_length"}


class _Called(nn.Module):
    """The model, called with names, giving the tensors `wanted` of its output."""

    def __init__(self, model: nn.Module, wanted: tuple[str, ...]) -> None:
        """wanted: fields of the output."""
        super().__init__()
        self.model, self.wanted = model, wanted

    def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """The wanted outputs."""
        output = self.model(**inputs)
        return tuple(output[name] for name in self.wanted)


def input_names(source: Source) -> list[str]:
    """What the model reads: token types only where it tells more than one apart and its tokenizer makes them."""
    takes = inspect.signature(source.model.forward).parameters
    found = ["input_ids", "attention_mask"]
    types = int(getattr(source.checkpoint.config, "type_vocab_size", 0) or 0)
    if "token_type_ids" in takes and types > 1:
        found.append("token_type_ids")
    return [name for name in found if name in takes]


def output_names(source: Source) -> tuple[str, ...]:
    """The outputs: logits, those of both ends of an answer, or hidden states."""
    name = type(source.model).__name__
    if name.endswith("ForQuestionAnswering"):
        return ("start_logits", "end_logits")
    return ("last_hidden_state",) if source.structure.head is None and "For" not in name else ("logits",)


def what(source: Source) -> Traced:
    """A small batch to trace with."""
    choices = type(source.model).__name__.endswith("ForMultipleChoice")
    shape = (ROWS, 3, LENGTH) if choices else (ROWS, LENGTH)
    ids = torch.arange(ROWS * LENGTH * (3 if choices else 1)).reshape(shape) % 7 + 5
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    made["attention_mask"][-1, ..., -2:] = 0
    names = input_names(source)
    axes = CHOICES if choices else AXES
    return Traced({n: made[n] for n in names}, dict.fromkeys(names, axes), output_names(source))


def called(model: nn.Module, asked: Traced) -> nn.Module:
    """A module around `model` that gives the outputs of `asked` when it is called with its inputs."""
    return _Called(model, asked.outputs)


def write(source: Source, folder: Path, writer: Writer) -> dict[str, Any]:
    """The graph of the model, rewritten: {"model.onnx": ModelProto}. Nothing is written into `folder` here."""
    del folder
    asked = what(source)
    model = skeleton(source)
    made = trace(model, called(model, asked), asked, writer.fused)
    rewrite(made, writer)
    return {"model.onnx": made}
