"""Runs a model whose blocks are not in memory: the model's own forward, with finished blocks played back.

Tracing graphs or copying each architecture's loop is what makes other tools refuse models. Here the model's forward
runs as it is written; every block that lies before the wanted one returns its recorded output instead of computing.
Masks, rotary tables, position biases and cross-attention inputs are therefore made by the model itself, for every
block, and nothing but hidden states has to be stored between blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import ModelError
from compress.core.numerics.error import all_finite
from compress.core.types import BlockRef

HIDDEN = "hidden"
Slot = tuple[str, Any]  # ("hidden", None) | ("argument", key) | ("stored", digest) | ("constant", value)


class Reached(Exception):
    """Unwinds the model's forward: the wanted block has run, or a hook inside it has seen enough."""


@dataclass
class Trace:
    """One batch on its way through the model.

    inputs: the model's keyword arguments. hidden: newest output of each stack, (B, L, D) float32.
    shapes: how each finished block wraps its output. stored: extra outputs (position biases), by digest.
    """

    inputs: dict[str, Tensor]
    hidden: dict[str, Tensor] = field(default_factory=dict)
    shapes: dict[int, list[Slot]] = field(default_factory=dict)
    stored: dict[str, Tensor] = field(default_factory=dict)

    def copy(self) -> Trace:
        """A trace that goes on by itself from here; tensors are shared."""
        return Trace(self.inputs, dict(self.hidden), dict(self.shapes), dict(self.stored))


def text_mask(trace: Trace) -> Tensor | None:
    """(rows, L) bool: which positions of the flattened batch are text and not padding; None where all are."""
    mask = trace.inputs.get("attention_mask")
    return None if mask is None else mask.reshape(-1, mask.shape[-1]).bool()


class Replay:
    """Drives `model` block by block. Use as a context manager: forwards are patched inside, restored outside."""

    def __init__(self, model: nn.Module, blocks: tuple[BlockRef, ...]) -> None:
        self.model = model
        self.blocks = blocks
        self.modules = [model.get_submodule(block.name) for block in blocks]
        self._real = [module.forward for module in self.modules]
        self._last = {block.stack: block.index for block in blocks}
        self._target: int | None = None
        self._trace = Trace({})
        self._output: Any = None

    def __enter__(self) -> Replay:
        for index, module in enumerate(self.modules):
            module.forward = self._forward_of(index)
        return self

    def __exit__(self, *_: object) -> None:
        for module in self.modules:
            module.__dict__.pop("forward", None)

    @torch.no_grad()
    def run(self, trace: Trace, index: int) -> Tensor:
        """The output (B, L, D) of block `index` for this trace; the block's parameters must be in memory.

        The trace is not changed. Raises ModelError when the model never reaches the block, or when the output is
        not finite.
        """
        self.visit(trace, index)
        hidden: Tensor = self._output[0]
        if not all_finite(hidden):
            raise ModelError(
                f"block {index} ({self.blocks[index].name}) puts out NaN or Inf values; its weights or the ones "
                "before it are broken, or the model overflows float32"
            )
        return hidden

    @torch.no_grad()
    def visit(self, trace: Trace, index: int) -> None:
        """Run block `index` for what its hooks see; one of them may raise Reached to leave the rest of it out.

        Raises ModelError when the model never reaches the block.
        """
        self._run(trace, index)

    def _run(self, trace: Trace, index: int) -> None:
        self._target, self._trace, self._output = index, trace, None
        try:
            self.model(**trace.inputs)
        except Reached:
            return
        finally:
            self._target = None
        raise self._unreached(index)

    def advance(self, trace: Trace, index: int) -> Tensor:
        """Run block `index` and keep its output in the trace, as what later blocks will see; returns it."""
        hidden = self.run(trace, index)
        trace.hidden[self.blocks[index].stack] = hidden
        trace.shapes[index], stored = self._output[1]
        trace.stored.update(stored)
        return hidden

    @torch.enable_grad()
    def graph(self, trace: Trace, index: int | None) -> tuple[Any, dict[str, Tensor]]:
        """The output of block `index`, or None: of the model, as `run` and `finish` give it, with the graph that made
        it; and the newest hidden states of each stack, which are leaves of that graph."""
        leaves = {stack: hidden.detach().requires_grad_() for stack, hidden in trace.hidden.items()}
        given = replace(trace, hidden=leaves)
        if index is not None:
            self._run(given, index)
            return self._output[0], leaves
        self._target, self._trace = None, given
        return self.model(**trace.inputs), leaves

    def output(self, trace: Trace, index: int) -> Tensor:
        """What `run` returns, with the graph that made it where gradients are enabled; hidden states that are recorded
        in the trace are no part of it."""
        self._run(trace, index)
        hidden: Tensor = self._output[0]
        return hidden

    @torch.no_grad()
    def finish(self, trace: Trace, logits_to_keep: Tensor | None = None) -> Any:
        """The model's own output with every block played back; logits at some positions only, where it can."""
        self._target, self._trace = None, trace
        kept = {} if logits_to_keep is None else {"logits_to_keep": logits_to_keep}
        return self.model(**trace.inputs, **kept)

    def _forward_of(self, index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if index != self._target:
                return self._play_back(index, args, kwargs)
            output = self._real[index](*args, **kwargs)
            self._output = split_output(output, args, kwargs)
            raise Reached

        return forward

    def _unreached(self, index: int) -> ModelError:
        name = self.blocks[index].name
        return ModelError(
            f"the model's forward never reaches {name}; use --method rtn --eval-samples 0, which run nothing"
        )

    def _play_back(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        block, trace = self.blocks[index], self._trace
        if index not in trace.shapes:
            raise self._unreached(index if self._target is None else self._target)
        incoming = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values())))
        next_wanted = self._target is not None and self._target == index + 1
        ends_stack = index == self._last[block.stack]
        hidden = trace.hidden[block.stack] if next_wanted or ends_stack else incoming
        return fill_output(hidden, trace.shapes[index], args, kwargs, trace.stored)


def split_output(
    output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[list[Slot], dict[str, Tensor]]]:
    """The hidden states of a block's output, and how to wrap other hidden states the same way.

    A part that is one of the arguments is remembered by its key, any other tensor is stored once by content.
    """
    if isinstance(output, Tensor):
        return output, ([(HIDDEN, True)], {})
    parts = tuple(output)
    keys = {id(value): key for key, value in [*enumerate(args), *kwargs.items()] if value is not None}
    slots: list[Slot] = [(HIDDEN, False)]
    stored: dict[str, Tensor] = {}
    for part in parts[1:]:
        if id(part) in keys:
            slots.append(("argument", keys[id(part)]))
        elif isinstance(part, Tensor):
            name = hashlib.sha256(part.contiguous().numpy().tobytes() + str(tuple(part.shape)).encode()).hexdigest()
            stored[name] = part
            slots.append(("stored", name))
        else:
            slots.append(("constant", None))
    return parts[0], (slots, stored)


def fill_output(
    hidden: Tensor, slots: list[Slot], args: tuple[Any, ...], kwargs: dict[str, Any], stored: dict[str, Tensor]
) -> Any:
    """`hidden` wrapped as `split_output` found the module's output to be."""
    parts = [_fill(slot, hidden, args, kwargs, stored) for slot in slots]
    return parts[0] if len(parts) == 1 and slots[0] == (HIDDEN, True) else tuple(parts)


def _fill(slot: Slot, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], stored: dict[str, Tensor]) -> Any:
    kind, value = slot
    if kind == HIDDEN:
        return hidden
    if kind == "argument":
        return args[value] if isinstance(value, int) else kwargs[value]
    return stored[value] if kind == "stored" else value


@contextmanager
def without_vocabulary(model: nn.Module, embedding: Tensor | None) -> Iterator[None]:
    """Inside, modules that look up `embedding` return zeros of the right shape.

    Past the first block the looked-up values are replaced by recorded ones anyway, so the largest matrix of the model
    need not be in memory.
    """
    users = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is embedding]
    for module in users:
        module.__dict__["forward"] = _zeros_like_lookup(module.embedding_dim)
    try:
        yield
    finally:
        for module in users:
            module.__dict__.pop("forward", None)


def _zeros_like_lookup(width: int) -> Callable[..., Tensor]:
    def forward(ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.zeros(*ids.shape, width)

    return forward
