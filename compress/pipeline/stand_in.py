"""A runtime's process in the place of a model: tasks make their batches and their answers from it as ever."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from export.client import RuntimeProcess


class _StandIn(nn.Module):
    """A runtime's process in the place of a model."""

    def __init__(self, process: RuntimeProcess, config: Any) -> None:
        """config: of the model."""
        super().__init__()
        self.process, self.config = process, config
        self.nothing = nn.Parameter(torch.zeros(0), requires_grad=False)

    def forward(self, **inputs: Tensor) -> Any:
        """The first output, by whatever name it is asked for."""
        found = self.process.run(inputs)
        return SimpleNamespace(logits=found, last_hidden_state=found)

    def generate(self, max_new_tokens: int, **told: Any) -> Tensor:
        """What it writes for each row, (B, T), padded with the end token, or with 0 where there is none."""
        inputs: Mapping[str, Tensor] = {name: value for name, value in told.items() if isinstance(value, Tensor)}
        rows = [torch.tensor(row, dtype=torch.int64) for row in self.process.write(inputs, max_new_tokens)]
        end = self.config.eos_token_id
        padding = (end[0] if isinstance(end, list) else end) or 0
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)


def stand_in(process: RuntimeProcess, config: Any) -> nn.Module:
    """The export that `process` has open, called like a model of transformers. config: of the model."""
    return _StandIn(process, config)
