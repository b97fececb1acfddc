"""A linear-chain CRF over the tags of a sentence (Lafferty et al. 2001), through pytorch-crf, and the file it lives in.

`crf.json` lies beside the weights of a tagger: names of the tags and three score tables. A server that knows nothing of
it reads the model as a plain tagger; ours decode with it. Compressing the model leaves it as it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import MissingExtraError, ModelError
from compress.core.task import IGNORED

FILE = "crf.json"
ILLEGAL = -4.0  # where the score of an I- that nothing begins starts; training may change it
TABLES = ("start_transitions", "end_transitions", "transitions")


class Crf(nn.Module):
    """Scores of tags that follow one another. Beside a model its parameters are trained with it."""

    def __init__(self, labels: Sequence[str]) -> None:
        """labels: tag names by number. Raises MissingExtraError without pytorch-crf."""
        super().__init__()
        try:
            from torchcrf import CRF
        except ImportError:
            raise MissingExtraError("pytorch-crf", "train") from None
        self.labels = tuple(labels)
        self.chain: Any = CRF(len(self.labels), batch_first=True)
        with torch.no_grad():
            for table in TABLES:
                getattr(self.chain, table).zero_()
            for n, label in enumerate(self.labels):
                if label.startswith("I-"):
                    self.chain.start_transitions[n] = ILLEGAL
                    others = [m for m, before in enumerate(self.labels) if before[2:] != label[2:] or before == "O"]
                    self.chain.transitions[others, n] = ILLEGAL

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean negative log-likelihood of a tag, nats. logits (B, L, C), labels (B, L) with IGNORED left out."""
        scored = labels != IGNORED
        kept = scored.any(1)
        order = torch.argsort((~scored).to(torch.int8), dim=1, stable=True)[kept]  # scored positions first, in order
        width = int(scored.sum(1).max())
        order = order[:, :width]
        emissions = torch.gather(logits[kept], 1, order.unsqueeze(2).expand(-1, -1, logits.shape[2]))
        mask = torch.gather(scored[kept], 1, order)
        tags = torch.gather(labels[kept], 1, order).clamp_min(0)
        found: Tensor = -self.chain(emissions.float(), tags, mask=mask, reduction="token_mean")
        return found

    @torch.no_grad()
    def decode(self, emissions: Tensor) -> list[int]:
        """The best tags of one sentence, by Viterbi. emissions: (n, C) of its words."""
        if not len(emissions):
            return []
        emissions = emissions.float().to(self.chain.transitions.device)
        mask = torch.ones(1, len(emissions), dtype=torch.bool, device=emissions.device)
        best: list[int] = self.chain.decode(emissions.unsqueeze(0), mask)[0]
        return best

    def dumps(self) -> bytes:
        """The bytes of FILE."""
        tables = {name: getattr(self.chain, name).detach().tolist() for name in TABLES}
        return json.dumps({"labels": list(self.labels), **tables}).encode() + b"\n"


def read_crf(folder: Path, labels: Sequence[str]) -> Crf | None:
    """The CRF in a model's folder, None when there is none. Raises ModelError when it is not of a model of `labels`."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        tables = {name: torch.tensor(found[name], dtype=torch.float32) for name in TABLES}
        named = tuple(found["labels"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"{path} is damaged; copy it anew from the tuned model, or delete it to decode without"
        ) from None
    count = len(named)
    shapes = [tuple(tables[name].shape) for name in TABLES]
    if named != tuple(labels) or shapes != [(count,), (count,), (count, count)]:
        raise ModelError(f"{path} is of a model with the tags {', '.join(named[:6])}; delete it, or use that model")
    crf = Crf(labels)
    with torch.no_grad():
        for name, table in tables.items():
            getattr(crf.chain, name).copy_(table)
    return crf
