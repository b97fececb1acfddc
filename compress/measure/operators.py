"""Files timed in a runtime: one after another each opened afresh in the runtime's own process, in rounds.

A B B A ...: a slow minute of the machine does not fall on one of them. Of medians of rounds the lower quartile counts:
what else runs on the machine only ever adds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.client import RuntimeProcess

ROUNDS, LEAST, SECONDS = 5, 5, 0.25


@dataclass(frozen=True)
class Request:
    """What is asked: texts in a batch, tokens of each, how many ids there are."""

    batch: int
    tokens: int
    vocabulary: int

    @property
    def axes(self) -> dict[str, int]:
        """Sizes of the axes of ONNX files of ours."""
        return {"batch_size": self.batch, "sequence_length": self.tokens, "vocabulary": self.vocabulary}


@dataclass(frozen=True)
class Timing:
    """rounds: how often each file is opened. least, seconds: runs that are timed each time, at least."""

    rounds: int = ROUNDS
    least: int = LEAST
    seconds: float = SECONDS


def in_rounds(
    process: RuntimeProcess, files: Mapping[str, Path], request: Request, timing: Timing,
    progress: Callable[[int, int], None],
) -> dict[str, list[list[float]]]:  # fmt: skip
    """Milliseconds of every run of each file, by round."""
    found: dict[str, list[list[float]]] = {name: [] for name in files}
    for turn in range(timing.rounds):
        order = list(files) if turn % 2 == 0 else list(files)[::-1]
        for number, name in enumerate(order):
            progress(turn * len(files) + number, timing.rounds * len(files))
            taken = process.timed(files[name], request.axes, timing.least, timing.seconds)
            found[name].append([1e3 * seconds for seconds in taken])
    return found


def quiet(rounds: Sequence[Sequence[float]]) -> float:
    """The lower quartile of rounds' medians: of five the second least."""
    return sorted(map(statistics.median, rounds))[(len(rounds) - 1) // 4]
