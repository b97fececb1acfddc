"""Faults that exporters make, planted in what an exporter reads: what it then writes is wrong in just that way.

Each is a class over `Source`. The export is judged against the true source, so whatever catches a fault has found it in
the written file or in what the runtime makes of it.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.core.types import QTensor
from export.source import Source


class OffByOneZero(Source):
    """Every zero point is one too high: GPTQ's oldest fault. Symmetric codes are one too low instead."""

    def codes(self, name: str) -> QTensor:
        q = super().codes(name)
        if q.zero is not None:
            return replace(q, zero=(q.zero + 1).clamp(max=2**q.scheme.bits - 1))
        if q.minimum is not None:
            return replace(q, minimum=(q.minimum - q.scale).half().float())
        return replace(q, codes=q.codes.clamp(min=1) - 1)


class TransposedBlock(Source):
    """In one layer the two halves of every 32 inputs have changed places."""

    def codes(self, name: str) -> QTensor:
        q = super().codes(name)
        if name != next(iter(self.coded)):
            return q
        rows, columns = q.codes.shape
        halves = q.codes.reshape(rows, columns // 32, 2, 16)
        return replace(q, codes=halves.flip(2).reshape(rows, columns).contiguous())


class DroppedBias(Source):
    """The biases of one block are zeros."""

    def weight(self, param: str) -> Tensor:
        value = super().weight(param)
        first = self.structure.blocks[0].prefix
        return torch.zeros_like(value) if param.startswith(first) and param.endswith(".bias") else value


class UntiedHead(Source):
    """The embedding, and with it a tied head, is another one: rows have moved by one."""

    def weight(self, param: str) -> Tensor:
        value = super().weight(param)
        embedding = self.structure.embedding
        return value.roll(1, 0) if embedding is not None and param == embedding.param else value


class WrongRope(Source):
    """Positions are turned by another base."""

    def __init__(self, folder: Path, trust_remote_code: bool = False) -> None:
        super().__init__(folder, trust_remote_code)
        self.checkpoint.config = _changed(deepcopy(self.checkpoint.config))
        self.config = deepcopy(self.config)
        told = self.config.get("rope_parameters") or {}
        for part in (told, *(v for v in told.values() if isinstance(v, dict)), self.config):
            if "rope_theta" in part:
                part["rope_theta"] = 100 * part["rope_theta"]


def _changed(config: Any) -> Any:
    told = config.rope_parameters
    for part in (told, *(v for v in told.values() if isinstance(v, dict))):
        if "rope_theta" in part:
            part["rope_theta"] = 100 * part["rope_theta"]
    return config


class NoTemplate(Source):
    """The chat template is left behind."""

    def companions(self) -> list[Path]:
        return [path for path in super().companions() if "chat_template" not in path.name]


FAULTS: dict[str, type[Source]] = {
    "off-by-one zero": OffByOneZero,
    "transposed block": TransposedBlock,
    "dropped bias": DroppedBias,
    "untied head": UntiedHead,
    "wrong rope theta": WrongRope,
    "no chat template": NoTemplate,
}
STATIC_ONLY = {"no chat template"}
"""Faults that leave the outputs for given ids as they are."""


def without_template(folder: Path) -> None:
    """Take the template out of a tokenizer's own settings too, so that it is in the file of its own only."""
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told.pop("chat_template", None)
    path.write_text(json.dumps(told), encoding="utf-8")
