"""What a token counts in a layer's second moments: by the gradient of the loss at the layer's output there.

A layer's loss is, to second order, a sum over tokens of (g . dy)^2, g the gradient at its output y: an error on a token
that nothing follows from costs nothing. Tokens count with the root of |g|^2 over what they count without it: the
gradients are of a few draws, and few tokens would count for all the others.
Source: Kim et al. 2025, GuidedQuant, arXiv:2505.07004 (groups of outputs, to the first power).

Recorded by the pass backward of a profile (compress.pipeline.profiling), read by the loop that builds the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import OutputError
from compress.core.safetensors_file import pending, read_header, read_tensor, write_file
from compress.core.types import BlockRef, LayerRef

LEAST, MOST = 0.05, 1e4
"""Of the mean of |g|^2 over all tokens of a layer: what a token has at least and at most. The first of a text, which
all others may attend to, has some hundred times the mean at values."""


class Watched:
    """|g|^2 at the output of each layer of one block, (B, L) for each text, summed over draws."""

    def __init__(self) -> None:
        self.number = 0  # of the text that runs
        self._calls: dict[tuple[str, int], int] = {}
        self._found: dict[tuple[str, int], Tensor] = {}

    @contextmanager
    def watching(self, model: nn.Module, layers: Sequence[LayerRef]) -> Iterator[None]:
        """Inside, forwards with a graph are watched, and what goes backward through them is added up. Experts, which
        see some of the tokens, are left out."""
        plain = [layer for layer in layers if layer.expert is None]
        hooks = [
            model.get_submodule(layer.param.rpartition(".")[0]).register_forward_hook(self._after(layer.name))
            for layer in plain
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _after(self, name: str) -> Any:
        def after(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                key = (name, self.number)
                self._calls[key] = self._calls.get(key, 0) + 1
                output.register_hook(lambda gradient: self._add(key, gradient))  # type: ignore[no-untyped-call]

        return after

    def _add(self, key: tuple[str, int], gradient: Tensor) -> None:
        if self._calls[key] == 1:  # of a layer that is called again, which call would it be
            energy = gradient.detach().square().sum(-1)
            self._found[key] = self._found[key] + energy if key in self._found else energy

    def write(self, folder: Path, block: BlockRef) -> None:
        """Into a file of the block, and forget."""
        found = {f"{number}.{name}": pending(energy) for (name, number), energy in self._found.items()}
        write_file(_path(folder, block), found)
        self._found.clear()
        self._calls.clear()


@dataclass(frozen=True)
class Importance:
    """What was recorded, for the texts of a loop. texts: how many rows, or batches, there are; known: number of a
    recorded text -> which of them it is."""

    folder: Path
    texts: int
    known: Sequence[int]

    def of(self, block: BlockRef, rows: Sequence[int]) -> list[dict[str, Tensor]]:
        """Of each batch, layer -> |g|^2 over its mean, (B, L); nan for texts that nobody asked about. rows: of each
        batch.

        Raises OutputError when the file is gone.
        """
        path = _path(self.folder, block)
        if not path.is_file():
            raise OutputError(f"{path} of the interrupted run is gone; pass --overwrite to start over")
        entries = read_header(path)
        by_layer: dict[str, dict[int, Tensor]] = {}
        for key, entry in entries.items():
            number, name = key.split(".", 1)
            by_layer.setdefault(name, {})[self.known[int(number)]] = read_tensor(entry)
        batches: list[dict[str, Tensor]] = [{} for _ in rows]
        for name in (layer.name for layer in block.layers if layer.name in by_layer):
            texts = by_layer[name]
            tokens = sum(energy.numel() for energy in texts.values())
            mean = sum(float(energy.sum(dtype=torch.float64)) for energy in texts.values()) / tokens
            if mean > 0:
                over = {number: energy / mean for number, energy in texts.items()}
                for batch, energy in zip(batches, self._batched(over, rows), strict=True):
                    if energy is not None:
                        batch[name] = energy
        return batches

    def _batched(self, known: Mapping[int, Tensor], rows: Sequence[int]) -> list[Tensor | None]:
        """(B, L) of each batch; None where nothing is known of it."""
        if self.texts == len(rows):
            return [known.get(number) for number in range(len(rows))]
        found: list[Tensor | None] = []
        first = 0
        for count in rows:
            parts = [known.get(number) for number in range(first, first + count)]
            first += count
            shape = next((part for part in parts if part is not None), None)
            found.append(None if shape is None else torch.cat(
                [torch.full_like(shape, torch.nan) if part is None else part for part in parts]))  # fmt: skip
        return found


def weighed(base: Tensor, energy: Tensor | None) -> Tensor:
    """What tokens count, (...,), of what they count without gradients (base) and of |g|^2 over its mean: base times the
    root of the quotient of both. Where nothing is known, or it is of other tokens, base."""
    if energy is None or energy.numel() != base.numel():
        return base
    quotient = energy.reshape(base.shape).to(base) * (base.mean() / base)
    return base * torch.where(quotient.isnan(), 1.0, quotient.clamp(LEAST, MOST).sqrt())


def _path(folder: Path, block: BlockRef) -> Path:
    return folder / f"importance-{block.index:05d}.safetensors"
