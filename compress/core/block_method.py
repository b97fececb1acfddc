"""What passes between the streaming loop and a method that tunes a solved block as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.core.types import QTensor

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Part:
    """One layer of a block that is to be tuned. weight: the original's, (O, I) float32. q: as it was solved."""

    weight: Tensor
    q: QTensor


@dataclass(frozen=True)
class BlockText:
    """Calibration text on its way through one block, batch by batch.

    tokens: how many of each batch count. output: (number of a batch, layer -> weight (O, I)) -> what the block puts
    out, (B, L, D), with these weights in the place of its own, on the inputs that the compressed model makes; with the
    graph that made it where gradients are enabled. wanted: number of a batch -> what the original block puts out
    (B, L, D) on the original's inputs, and what each token counts (B, L): 0 for padding.
    """

    tokens: Sequence[int]
    output: Callable[[int, Mapping[str, Tensor]], Tensor]
    wanted: Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Tuned:
    """A block after it was tuned. layers: of every part, its new codes and scales.

    before, after: the error of the block's output, the mean over calibration tokens (some, where there are many)
    and outputs of count * (y - y')^2; after is never above before.
    """

    layers: dict[str, QTensor]
    before: float
    after: float


@dataclass(frozen=True)
class BlockMethod:
    """A pure function `(parts by layer, text, options, generator, report) -> Tuned`; report is told (done, of) steps.

    tunes: whether a method can do anything for codes of such a scheme.
    """

    tune: Callable[[Mapping[str, Part], BlockText, Any, Generator, Callable[[int, int], None]], Tuned]
    tunes: Callable[[QTensor], bool]
    options: type
    paper: str
    summary: str
