"""What fits and what is fast on this machine, tried with steps of the real model before training begins.

Both answers may differ on another day: the pipeline writes them into the journal, for a run that is resumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import ModelError

FASTER = 1.1
"""How many times faster a step in bfloat16 must be to be worth its digits."""
STEPS = 3

Loss = Callable[[Sequence[Any]], Tensor]  # of a batch of items, with gradients


def largest_batch(model: nn.Module, items: Sequence[Any], loss: Loss, start: int) -> int:
    """`start`, halved until a step on that many of `items` does not run out of memory.

    items: training rows, longest first. Memory for the optimizer's two moments is held meanwhile. Nothing of the model
    is changed. Raises ModelError when not even one row fits.
    """
    from accelerate.utils import find_executable_batch_size

    size = start

    def halved() -> int:
        nonlocal size
        size //= 2
        return size

    @find_executable_batch_size(starting_batch_size=start, reduce_batch_size_fn=halved)  # type: ignore[untyped-decorator]
    def attempt(batch_size: int) -> int:
        moments = [torch.zeros_like(p) for p in model.parameters() if p.requires_grad for _ in range(2)]
        _step(model, items[:batch_size], loss)
        del moments
        return batch_size

    with _untouched(model):
        try:
            return int(attempt())
        except RuntimeError as error:
            if "No executable batch size" not in str(error):
                raise
    raise ModelError("not even a batch of one row fits into memory; use a shorter --max-length, or --checkpointing")


def bf16_gain(model: nn.Module, items: Sequence[Any], loss: Loss) -> float:
    """How many times faster a step on `items` is in bfloat16 than in float32: medians of STEPS, after one more."""
    device = next(model.parameters()).device.type
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with _untouched(model):
        for turn in range(STEPS + 1):
            for low in (False, True):  # by turns: what else runs here slows both
                context = torch.autocast(device, torch.bfloat16) if low else nullcontext()
                started = time.perf_counter()
                with context:
                    _step(model, items, loss)
                if turn:
                    seconds[low].append(time.perf_counter() - started)
    return median(seconds[False]) / median(seconds[True])


def _step(model: nn.Module, items: Sequence[Any], loss: Loss) -> None:
    try:
        loss(items).backward()  # type: ignore[no-untyped-call]
    finally:
        model.zero_grad(set_to_none=True)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Inside, steps are taken as in training; random numbers and the mode of the model are as before afterwards."""
    before = model.training
    with torch.random.fork_rng():
        model.train()
        try:
            yield
        finally:
            model.train(before)
