"""Tokens that a runtime writes, token by token, and where it ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress.pipeline.heard import Follow, written_line
from export.judge import Bounds

END, ALLOWED = 2, Bounds(0.25, 0.5, 0.1, "", {})
GIVEN = {"decoder_input_ids": torch.tensor([[0]])}


class Writes:
    """A runtime that always writes the same."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def write(self, *_: Any) -> list[list[int]]:
        return [self.ids]


def line(written: list[int], right: list[int], ends: set[int]) -> dict[str, Any]:
    """Judged by a reference that prefers `right` by 1 each time, and then nothing."""

    def logits(ids: Any) -> torch.Tensor:
        made = torch.zeros(len(ids) + 1, 8)
        for row, token in zip(made, right, strict=False):
            row[token] = 1.0
        return made

    return written_line(Writes(written), GIVEN, Follow(logits, ends), ALLOWED)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "ends", "passed"),
    [
        ([5, 6, END], {END}, True),
        ([5, 6], {END}, True),  # a runtime that leaves the end out
        ([5, 7], {END}, False),
        ([5], {END}, False),  # it ends too early
        ([], {END}, False),  # it says nothing
        ([5, 6], set(), True),  # nothing ends a text of this model
    ],
)
def test_each_token_and_the_end_are_the_references(written: list[int], ends: set[int], passed: bool) -> None:
    assert line(written, [5, 6, END], ends)["passed"] is passed
