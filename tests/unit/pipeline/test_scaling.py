"""Which text scales of inputs are chosen by."""

from __future__ import annotations

import torch

from compress.pipeline.replay import Trace
from compress.pipeline.scaling import TOKENS, _some


def text(rows: int, length: int) -> Trace:
    return Trace({"input_ids": torch.zeros(rows, length, dtype=torch.long)})


def test_batches_are_taken_evenly() -> None:
    traces = [text(2, 512) for _ in range(40)]
    found = _some(traces)
    assert list(map(id, found)) == list(map(id, traces[::5]))
    assert sum(trace.inputs["input_ids"].numel() for trace in found) == TOKENS
    assert len(_some(traces[:7])) == 7


def test_what_is_said_counts_and_not_the_sound() -> None:
    sound = [
        Trace({"input_features": torch.zeros(4, 80, 300), "decoder_input_ids": torch.zeros(4, 30, dtype=torch.long)})
        for _ in range(12)
    ]
    assert len(_some(sound)) == 12
    assert len(_some([Trace({"input_features": torch.zeros(2, 80, 300)}) for _ in range(3)])) == 3
