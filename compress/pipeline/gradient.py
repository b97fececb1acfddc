"""What a small change of each weight does to the loss: one pass backward over a model, a block at a time.

The loss is the model's own (Fisher's information, not the empirical one, which labels of a text would give). Of a text
with log-likelihood l of the model's own answers and a layer whose weight W becomes W + D, the expected divergence is
E[(dl/dW . D)^2] / 2 up to third order: all of the change, over tokens and outputs together, and one product with the
weight's gradient for each scheme, however many there are. Which scalar stands for l: compress.pipeline.likelihood.
Source: Kullback 1959, Information Theory and Statistics, section 2.6; Martens 2020, arXiv:1412.1193, section 5.

Memory: one block with the gradients of its matrices, the changes of its layers at every scheme in float32, and the
activations of all texts once, with their gradients. What goes into each block waits on disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compress.core.blocks import read_weight
from compress.core.checkpoint import Checkpoint, empty
from compress.core.device import release_memory
from compress.core.errors import ModelError
from compress.core.types import BlockRef, LayerPlan, LayerRef, Structure
from compress.pipeline.importance import Watched
from compress.pipeline.outside import Outside
from compress.pipeline.replay import Replay, Trace
from compress.pipeline.rounding import Asked, asked_of, moved, watching

Dots = dict[tuple[str, str], list[float]]
"""(layer, scheme) -> (gradient of the log-likelihood) . (change of the weight), of each text, draw by draw."""

Changes = Mapping[str, Mapping[str, Tensor]]
"""Layer -> scheme -> what it adds to the weight (O, I), float32."""


class Changing(Protocol):
    """The changes that are asked about, block by block; -1 is what lies outside the blocks."""

    def names(self, block: int) -> set[str]:
        """The layers of a block that are asked about."""

    def changes(self, block: int, weights: Mapping[str, Tensor]) -> Changes:
        """Of layers of a block, whose weights (O, I) float32 are given."""


Likelihood = Callable[[int, Trace, Any, int], Tensor]
"""Number of a text, its trace, the model's output, number of a draw -> a scalar whose gradient has Fisher's
information."""


@dataclass(frozen=True)
class Point:
    """The weights that gradients are taken at. around: with the vocabulary or without -> a context in which the model's
    parameters around the blocks are there; fill: brings those of a block into memory."""

    around: Callable[[bool], AbstractContextManager[Any]]
    fill: Callable[[BlockRef], None]

    @classmethod
    def original(cls, checkpoint: Checkpoint, outside: Outside) -> Point:
        """The model as it is."""
        return cls(
            lambda vocabulary: outside.installed("original", vocabulary), lambda block: checkpoint.fill(block.name)
        )


class Backward:
    """The pass backward. `upstream`: of each text, draw by draw, the gradient at the newest output of each stack;
    `watched`: sees those at the outputs of layers."""

    def __init__(
        self, checkpoint: Checkpoint, structure: Structure, point: Point, bank: Changing,
        chosen: Mapping[str, Sequence[LayerPlan]] | None = None, draws: int = 1,
    ) -> None:  # fmt: skip
        """bank: of all layers that are asked about, what is done to their weights at `point`. chosen: how they may be
        treated; only who rounds inputs counts. draws: of the likelihood for each text, each one more pass backward
        and no more forward."""
        self.checkpoint, self.structure, self.point, self.bank = checkpoint, structure, point, bank
        self.chosen, self.draws = chosen or {}, draws
        self.upstream: list[list[dict[str, Tensor]]] = []
        self.watched: Watched | None = None

    def ends(self, replay: Replay, traces: Sequence[Trace], likelihood: Likelihood) -> Dots:
        """Begin at the model's answers; traces end at the last blocks' outputs. Dots of the head, of the embedding
        where it is tied to it."""
        model = self.checkpoint.model
        self.upstream = []
        dots: Dots = {}
        with self.point.around(True):
            head = self._head()
            changes = self._changes(-1, [head] if head is not None else [])
            with _differentiable(model, [head] if head is not None else []) as parameters:
                for number, trace in enumerate(traces):
                    output, leaves = replay.graph(trace, None)
                    wanted = [*leaves.values(), *parameters]
                    self.upstream.append([])
                    for draw in range(self.draws):
                        score = likelihood(number, trace, output, draw)
                        found = torch.autograd.grad(score, wanted, allow_unused=True, retain_graph=not self._last(draw))
                        self.upstream[-1].append(_known(leaves, found))
                        if head is not None:
                            _count(dots, self._place(number, draw, traces), head, found[-1], changes)
        return dots

    def _last(self, draw: int) -> bool:
        return draw == self.draws - 1

    def _place(self, number: int, draw: int, traces: Sequence[Trace]) -> Place:
        return number * self.draws + draw, len(traces) * self.draws

    def block(self, replay: Replay, block: BlockRef, traces: Sequence[Trace]) -> Dots:
        """Dots of a block's layers, and of the embedding at the first block of a stack; `upstream` moves to its input.

        Traces hold what goes into the block, and the last outputs of the other stacks.
        """
        model, first = self.checkpoint.model, block.position == 0
        there = self.bank.names(block.index)
        layers = [layer for layer in block.layers if layer.name in there]
        self.point.fill(block)
        dots: Dots = {}
        with self.point.around(first):
            table = self._changes(-1, [e for e in [self._embedding()] if e is not None]) if first else {}
            changes = self._changes(block.index, layers)
            asked = asked_of(self.chosen, layers)
            coded = self._coded(asked, changes)
            with (
                _differentiable(model, layers) as parameters,
                _looked_up(model, bool(table)) as looked,
                watching(model, asked) as seen,
                self.watched.watching(model, layers) if self.watched is not None else nullcontext(),
            ):
                for number, trace in enumerate(traces):
                    if self.watched is not None:
                        self.watched.number = number
                    gradients = [held.pop(block.stack, None) for held in self.upstream[number]]
                    if gradients[0] is None:  # nothing that follows reads this stack
                        continue
                    looked.clear()
                    seen.calls.clear()
                    output, leaves = replay.graph(trace, block.index)
                    if first:
                        leaves.pop(block.stack, None)  # not read: its input comes from the embedding
                    before = [*leaves.values(), *parameters, *(words for _, words in looked)]
                    wanted = [*before, *seen.outputs]
                    for draw, gradient in enumerate(gradients):
                        found = torch.autograd.grad(
                            output, wanted, gradient, allow_unused=True, retain_graph=not self._last(draw)
                        )
                        _pass_on(self.upstream[number][draw], _known(leaves, found))
                        place = self._place(number, draw, traces)
                        of_layers = dict(zip(_params(layers), found[len(leaves) :], strict=False))
                        for layer in layers:
                            _count(dots, place, layer, of_layers[layer.param], changes)
                        of_words = found[len(leaves) + len(parameters) : len(before)]
                        for (ids, _), words in zip(looked, of_words, strict=True):
                            _count_words(dots, place, ids, words, table)
                        _count_rounded(dots, place, asked, moved(asked, seen, found[len(before) :], coded))
        empty(model.get_submodule(block.name))
        release_memory()
        return dots

    def watch(self, replay: Replay, block: BlockRef, traces: Sequence[Trace]) -> None:
        """Show `watched` a block before it is asked about, of the first draw alone. Nothing moves."""
        assert self.watched is not None
        model, first = self.checkpoint.model, block.position == 0
        self.point.fill(block)
        with (
            self.point.around(first),
            _differentiable(model, block.layers if first else []) as parameters,  # what goes into it is no leaf there
            self.watched.watching(model, block.layers),
        ):
            for number, trace in enumerate(traces):
                self.watched.number = number
                if (gradient := self.upstream[number][0].get(block.stack)) is None:
                    continue
                output, leaves = replay.graph(trace, block.index)
                torch.autograd.grad(output, [*leaves.values(), *parameters], gradient, allow_unused=True)
        empty(model.get_submodule(block.name))

    def _head(self) -> LayerRef | None:
        """What makes the logits, if it is asked about; the embedding where it is that."""
        head = self.structure.head
        if head is not None and head.tied_to is not None:
            return self._embedding()
        return head if head is not None and head.name in self.bank.names(-1) else None

    def _embedding(self) -> LayerRef | None:
        found = self.structure.embedding
        return found if found is not None and found.name in self.bank.names(-1) else None

    def _changes(self, block: int, layers: Sequence[LayerRef]) -> Changes:
        model = self.checkpoint.model
        weights = {layer.name: read_weight(layer, model.get_parameter(layer.param)) for layer in layers}
        return self.bank.changes(block, weights) if weights else {}

    def _coded(self, asked: Sequence[Asked], changes: Changes) -> dict[tuple[str, str], Tensor]:
        """(layer, scheme) -> the weight (O, I) that the codes stand for."""
        weights = {
            one.layer.name: read_weight(one.layer, self.checkpoint.model.get_parameter(one.layer.param))
            for one in asked
        }
        return {(o.layer.name, o.scheme): weights[o.layer.name] + changes[o.layer.name][o.scheme] for o in asked}


Place = tuple[int, int]  # number of a text's draw, how many there are


def add_dots(found: Dots, more: Dots) -> None:
    """Add `more` to `found`: an embedding is met where words are looked up and, tied, where logits are made."""
    for key, values in more.items():
        before = found.get(key)
        found[key] = values if before is None else [a + b for a, b in zip(before, values, strict=True)]


def _pass_on(upstream: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
    for stack, gradient in gradients.items():
        before = upstream.get(stack)
        upstream[stack] = gradient if before is None else before + gradient


def _count(dots: Dots, place: Place, layer: LayerRef, gradient: Tensor | None, changes: Changes) -> None:
    """Add the products of a layer; gradient: of the parameter that holds it, None where the text did not reach it."""
    if gradient is None:
        return
    matrix = read_weight(layer, gradient).flatten()
    for scheme, change in changes[layer.name].items():
        _put(dots, place, (layer.name, scheme), float(torch.dot(matrix, change.flatten())))


def _count_words(dots: Dots, place: Place, ids: Tensor, gradient: Tensor | None, changes: Changes) -> None:
    """The same for looked-up rows: ids (...), gradient (..., D) at what was found."""
    if gradient is None:
        return
    for name, by_scheme in changes.items():
        for scheme, change in by_scheme.items():
            _put(dots, place, (name, scheme), float((change[ids] * gradient).sum()))


def _count_rounded(dots: Dots, place: Place, asked: Sequence[Asked], found: dict[tuple[str, str], float]) -> None:
    """Add what rounding inputs does to what the codes do, which has been counted."""
    for one in asked:
        codes = dots.get((one.layer.name, one.scheme), [0.0] * place[1])[place[0]]
        _put(dots, place, (one.layer.name, one.treatment), codes + found[one.layer.name, one.treatment])


def _put(dots: Dots, place: Place, key: tuple[str, str], value: float) -> None:
    if not math.isfinite(value):
        raise ModelError(
            f"the gradient of {key[0]} is not finite on text {place[0]}; the model overflows float32 on it"
        )
    dots.setdefault(key, [0.0] * place[1])[place[0]] += value


def _known(leaves: dict[str, Tensor], found: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """The gradients of the leaves that were reached."""
    return {stack: g for stack, g in zip(leaves, found, strict=False) if g is not None}


def _params(layers: Sequence[LayerRef]) -> list[str]:
    return list(dict.fromkeys(layer.param for layer in layers))


@contextmanager
def _differentiable(model: nn.Module, layers: Sequence[LayerRef]) -> Iterator[list[nn.Parameter]]:
    """Inside, the parameters that hold `layers`, given in order and once each, have gradients; nothing else does."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    chosen = [model.get_parameter(name) for name in _params(layers)]
    for parameter in asked:
        parameter.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        yield chosen
    finally:
        for parameter in chosen:
            parameter.requires_grad_(False)


@contextmanager
def _looked_up(model: nn.Module, wanted: bool) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inside, what the token embedding finds is a leaf; (ids, leaf) of each look-up is in the list."""
    found: list[tuple[Tensor, Tensor]] = []
    if not wanted:
        yield found
        return

    def after(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        found.append((args[0], leaf))
        return leaf

    table = model.get_input_embeddings().weight  # type: ignore[operator]
    users = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is table]
    hooks = [module.register_forward_hook(after) for module in users]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
