"""What models that read and write are verified on: inputs made from the probe, and whether each token that a runtime
writes is the one that the reference would have written there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.client import RuntimeProcess
from export.judge import GREEDY, Bounds, Line
from export.reference import Reference
from export.runtimes._rules import rules

SAID = 24  # tokens of each sequence that the decoder is given


@dataclass(frozen=True)
class Follow:
    """What the reference would have written. logits: ids that were written -> (n + 1, V) at each of them and after the
    last. ends: ids that end a text."""

    logits: Callable[[Sequence[int]], Tensor]
    ends: Collection[int]


def inputs_of(source: Path, config: Any, sequences: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """What an encoder-decoder reads, and the beginning of what it writes; two texts or sounds in the last of them.

    Sound is noise of the size of log-mel features: no file has to be there, and every weight is used.
    """
    start = torch.tensor([[rules(source).start]])
    said = [torch.cat([start, ids[None, :SAID]], 1) for ids in sequences]
    if getattr(config, "num_mel_bins", None):
        generator = torch.Generator().manual_seed(0)
        shape = (int(config.num_mel_bins), 2 * int(config.max_source_positions))
        sounds = [torch.randn(1, *shape, generator=generator) / 2 for _ in said[:2]]
        pairs = list(zip(sounds, said, strict=False))
        found = [{"input_features": sound, "decoder_input_ids": ids} for sound, ids in pairs]
        length = min(len(ids[0]) for _, ids in pairs)
        both = {"decoder_input_ids": torch.cat([ids[:, :length] for _, ids in pairs])}
        return [*found, {"input_features": torch.cat(sounds), **both}]
    found = []
    for ids, written in zip(sequences, [said[-1], *said], strict=False):
        given = {"input_ids": ids[None], "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
        found.append({**given, "decoder_input_ids": written})
    short = sequences[-1][: max(1, len(sequences[-1]) // 2)]
    batch = torch.nn.utils.rnn.pad_sequence([sequences[0], short], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in (sequences[0], short)], batch_first=True)
    length = min(len(said[0][0]), len(said[-1][0]))
    written = torch.cat([said[0][:, :length], said[-1][:, :length]])
    return [*found, {"input_ids": batch, "attention_mask": mask, "decoder_input_ids": written}]


def follower(reference: Reference, given: Mapping[str, Tensor], source: Path) -> Follow:
    """The reference's logits behind the start token and what was written after it; tokens never said are left out."""
    said = rules(source)

    def logits_of(ids: Sequence[int]) -> Tensor:
        told = torch.cat([given["decoder_input_ids"][:, :1], torch.tensor([list(ids)], dtype=torch.int64)], 1)
        logits = reference.run({**given, "decoder_input_ids": told})[0].clone()
        for turn, row in enumerate(logits):
            said.heed(row, turn)
        return logits

    return Follow(logits_of, said.ends)


def written_line(process: RuntimeProcess, given: Mapping[str, Tensor], follow: Follow, allowed: Bounds) -> Line:
    """A line on what the runtime writes with keys and values kept: is each token the reference's, or one that what may
    differ explains?"""
    written = process.write({**given, "decoder_input_ids": given["decoder_input_ids"][:, :1]}, GREEDY)[0]
    ids = written[: next((at for at, token in enumerate(written) if token in follow.ends), len(written))]
    logits = follow.logits(ids)
    chosen = logits[: len(ids)].gather(1, torch.tensor(ids, dtype=torch.int64)[:, None])[:, 0]
    if len(ids) < GREEDY and follow.ends:  # it ended here, by one of the ends
        chosen = torch.cat([chosen, logits[len(ids), sorted(follow.ends)].amax()[None]])
    lost = logits[: len(chosen)].amax(-1) - chosen
    gap, limit = float(lost.max()), 2 * allowed.largest
    line: Line = {"check": "greedy tokens", "of": len(chosen), "equal": int((lost == 0).sum())}
    line |= {"gap": gap, "tolerance": limit, "passed": gap <= limit}
    if gap > limit:
        at = int((lost > limit).nonzero()[0])
        line["said"] = f"at token {at + 1} the reference prefers its own by {float(lost[at]):.3g}"
    return line
