"""Rounding and scales of a block's layers, tuned by gradient against what the block puts out.

After AutoRound (Cheng et al. 2023, arXiv:2309.05516), which learns an offset in [-0.5, 0.5] for each code, and
OmniQuant (Shao et al. 2023, arXiv:2308.13137), which learns where a group is clipped. Differs from both, and why:
- it starts from codes that are solved already (GPTQ's), and not from the nearest ones: a weight stands in the middle of
  its code, moved by `lean` towards where the original's weight lies, so that nothing changes before gradients say so;
- scales are learnt as such, through the rounding to their stored grid, instead of clipping factors of a min-max range;
- a token counts by the inverse of its own energy, as where GPTQ corrects the stream (the caller says what it counts);
- steps fall to nothing, and the last iterate is kept if the calibration text's error is lower than at the start. No
  part of the text is held back to choose by: codes were solved on that part too, and it would choose the start.
Gradients pass both roundings as if they were not there (Bengio et al. 2013, arXiv:1308.3432).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from compress.core.block_method import BlockMethod, BlockText, Part, Tuned
from compress.core.errors import RecipeError
from compress.core.numerics.affine import per_column, round_to_storage, symmetric_zero, to_groups
from compress.core.types import QTensor

STEPS, MOST = 96, 4
WAYS = (1.0, 0.25)
"""Shares of the way in all that are tried, the next where one ends worse than it began."""
FULL = 32
"""Steps from which the whole way is gone."""
JUDGED = 32_768
"""Tokens that the error is measured on, before and after."""
_EDGE = 0.499  # a weight that far from the middle of its code is still rounded to it
_BETAS = (0.9, 0.99)
_WARM = 0.1  # share of the steps in which the rates grow


@dataclass(frozen=True)
class Options:
    """Settings of the tuning.

    epochs: passes over the calibration text; 0: as many as make STEPS steps, up to MOST. travel: how far a weight that
    is pulled one way all the time moves in all, in codes, by however many steps; 0 leaves codes as they are. stretch:
    the same of scales, as a share of themselves. reach: how far a code may end from where it was solved. lean: 0 starts
    weights in the middle of their codes, 1 where the original's are, as far as their codes reach. tokens: of a step.
    """

    epochs: int = 0
    travel: float = 0.4
    stretch: float = 0.12
    reach: float = 1.0
    lean: float = 0.8
    tokens: int = 1024

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise RecipeError(f"tune.epochs {self.epochs} is impossible; use 1 or more, or 0 to have it chosen")
        if self.tokens < 1:
            raise RecipeError(f"tune.tokens {self.tokens} is impossible; use 1 or more, 1024 is the default")
        for name, low, high in (("travel", 0, 4), ("stretch", 0, 0.5), ("reach", 0, 2), ("lean", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise RecipeError(f"tune.{name} {getattr(self, name)} is out of range; use {low} to {high}")


def tune(
    parts: Mapping[str, Part],
    text: BlockText,
    options: Options,
    generator: Generator,
    report: Callable[[int, int], None],
) -> Tuned:
    """`parts` with the codes and scales that bring the block's output nearest to what is wanted.

    Codes end within their bits and `reach`, scales on the grid they are stored on; zeros stay. Where the error is not
    lower than at the start, a shorter way is tried, and then parts are returned as they came. Cost: 3 forward passes of
    the block for each epoch and way, and 2 of JUDGED tokens. Memory: 5 numbers for each weight, the graph of a batch.
    """
    before = judged({name: _Layer(part, options) for name, part in parts.items()}, text)
    epochs = options.epochs or min(MOST, math.ceil(STEPS * options.tokens / max(1, sum(text.tokens))))
    for way in WAYS:
        layers = {name: _Layer(part, options) for name, part in parts.items()}
        steps = [step for _ in range(epochs) for step in steps_of(text, options.tokens, generator)]
        for number, (step, share) in enumerate(zip(steps, shares_of(len(steps)), strict=True)):
            for name, gradient in gradients_of(layers, text, step).items():
                layers[name].move(gradient, share * way)
            report(number + 1, len(steps))
        after = judged(layers, text)
        if after < before:
            return Tuned({name: layer.q() for name, layer in layers.items()}, before, after)
    return Tuned({name: part.q for name, part in parts.items()}, before, before)


def shares_of(steps: int) -> list[float]:
    """What each of `steps` steps is of the way in all: growing at first, then falling to nothing as a cosine.

    Fewer than FULL go only a part of the way: steps as long as that overshoot.
    """
    rates = [min(1.0, (n + 1) / (_WARM * steps)) * (1 + math.cos(math.pi * (n + 0.5) / steps)) for n in range(steps)]
    return [rate / sum(rates) * min(1.0, steps / FULL) for rate in rates]


def steps_of(text: BlockText, tokens: int, generator: Generator) -> list[list[int]]:
    """One epoch: all batches in random order, as many to a step as have `tokens` together."""
    steps: list[list[int]] = [[]]
    for batch in torch.randperm(len(text.tokens), generator=generator).tolist():
        if sum(text.tokens[n] for n in steps[-1]) >= tokens:
            steps.append([])
        steps[-1].append(batch)
    return steps


def off(output: Tensor, wanted: Tensor, counts: Tensor) -> Tensor:
    """Sum over tokens of count * mean over outputs of (y - y')^2. output, wanted: (B, L, D); counts: (B, L)."""
    return ((output - wanted).square().mean(-1) * counts).sum()


@torch.no_grad()
def judged(layers: Mapping[str, _Layer], text: BlockText) -> float:
    """The mean error of a token of the first batches."""
    weights = {name: layer.weight() for name, layer in layers.items()}
    total, tokens = 0.0, 0
    for number, count in enumerate(text.tokens):
        if tokens < JUDGED:
            total += float(off(text.output(number, weights), *text.wanted(number)))
            tokens += count
    return total / max(1, tokens)


def gradients_of(layers: Mapping[str, _Layer], text: BlockText, batches: Sequence[int]) -> dict[str, Tensor]:
    """Of the mean error of a step's tokens with respect to each layer's weight (O, I), where it reaches the output."""
    tokens = max(1, sum(text.tokens[n] for n in batches))
    gradients: dict[str, Tensor] = {}
    with torch.enable_grad():
        weights = {name: layer.weight().requires_grad_() for name, layer in layers.items()}
        for number in batches:
            error = off(text.output(number, weights), *text.wanted(number)) / tokens
            found = torch.autograd.grad(error, list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, found, strict=True):
                if gradient is not None:
                    gradients[name] = gradients[name].add_(gradient) if name in gradients else gradient
    return gradients


class _Layer:
    """One layer on its way: where each weight stands in units of codes, (O, I), and what its scales are multiplied by.

    Both are moved by Adam (Kingma and Ba 2014, arXiv:1412.6980), scales in their logarithm.
    """

    def __init__(self, part: Part, options: Options) -> None:
        self.start, self.options = part.q, options
        scheme, columns = part.q.scheme, part.q.codes.shape[1]
        zero = torch.full_like(part.q.scale, symmetric_zero(scheme)) if part.q.zero is None else part.q.zero.float()
        self._zero = per_column(zero, columns, scheme)
        codes = part.q.codes.float()
        aside = part.weight / per_column(part.q.scale, columns, scheme) + self._zero - codes
        self._place = codes + options.lean * aside.clamp_(-_EDGE, _EDGE)
        self._low = (codes - options.reach).clamp_(min=0) - _EDGE
        self._high = (codes + options.reach).clamp_(max=2**scheme.bits - 1) + _EDGE
        self._factor = torch.zeros_like(part.q.scale)
        self._moments: dict[int, tuple[Tensor, Tensor]] = {}
        self._steps = 0

    def codes(self) -> Tensor:
        """(O, I) float32, whole numbers."""
        return self._place.round()

    def scale(self) -> Tensor:
        """(O, G), as it is stored."""
        scheme = self.start.scheme
        return round_to_storage(self.start.scale * self._factor.exp(), scheme.scale_dtype, scheme.scale_bits)

    def weight(self) -> Tensor:
        """(O, I), what codes and scales stand for now."""
        return (self.codes() - self._zero) * per_column(self.scale(), self._zero.shape[1], self.start.scheme)

    def q(self) -> QTensor:
        """The same as codes."""
        return replace(self.start, codes=self.codes().to(torch.uint8), scale=self.scale())

    def move(self, gradient: Tensor, share: float) -> None:
        """One step against the weight's gradient (O, I), at most `share` of the way in all."""
        self._steps += 1
        scheme, scale = self.start.scheme, self.scale()
        to_factor = to_groups(gradient * (self.codes() - self._zero), scheme).sum(2) * scale
        if self.options.travel:
            to_place = gradient * per_column(scale, gradient.shape[1], scheme)
            self._adam(0, self._place, to_place, self.options.travel * share)
            torch.minimum(torch.maximum(self._place, self._low), self._high, out=self._place)
        self._adam(1, self._factor, to_factor, self.options.stretch * share)

    def _adam(self, which: int, value: Tensor, gradient: Tensor, rate: float) -> None:
        first, second = self._moments.setdefault(which, (torch.zeros_like(value), torch.zeros_like(value)))
        a, b = _BETAS
        first.lerp_(gradient, 1 - a)
        second.lerp_(gradient.square_(), 1 - b)
        spread = (second / (1 - b**self._steps)).sqrt_().add_(torch.finfo(second.dtype).tiny)
        value.addcdiv_(first, spread, value=-rate / (1 - a**self._steps))


def tunes(q: QTensor) -> bool:
    """Integer codes only: levels of a codebook are not evenly spaced, ggml's scales have scales of their own."""
    return q.scheme.kind == "int"


METHOD = BlockMethod(
    tune=tune,
    tunes=tunes,
    options=Options,
    paper="arXiv:2309.05516",
    summary="rounding and scales of a block moved by gradient, against what the original block puts out",
)
