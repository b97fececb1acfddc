"""The part of a block that is solved already, played back while the rest of the block is solved.

Attention, once its last matrix is solved, gives the same output in every later pass of a batch; running it again for
each step would cost as much as the steps themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.types import BlockRef, LayerRef
from compress.pipeline.replay import Slot, fill_output, split_output

KEEP_BYTES = 1 << 28  # inputs kept to save a pass, all batches together; past that the pass is made


@dataclass
class _Played:
    """What a module put out for one batch: `hidden`, or what its last layer `layer` makes of `x`; and the wrapping."""

    hidden: Tensor | None
    slots: list[Slot]
    stored: dict[str, Tensor]
    layer: nn.Module | None = None
    x: Tensor | None = None


class Finished:
    """Modules of one block whose layers are all solved. `batch` says which batch the next forwards are of.

    A module's output is kept the first time it runs with its final weights. Where it is the output of its last layer
    as it is, that layer's input is kept one pass earlier, when the layer's statistics are gathered, and turned into the
    output as soon as it is solved. Memory: one activation buffer for each such module, and KEEP_BYTES.
    """

    def __init__(self, model: nn.Module, block: BlockRef, steps: tuple[BlockRef, ...]) -> None:
        self._model = model
        self.steps = steps
        self._after = parts_after(block, steps)
        self._steps = 0
        self._done: list[str] = []
        self._inputs_bytes = 0
        self._kept: dict[tuple[str, int], _Played] = {}
        # by the output's id; the output is held, so that no other tensor gets its id
        self._calls: dict[int, tuple[Tensor, nn.Module, Tensor]] = {}
        self.batch: int | None = None

    def solved(self) -> None:
        """One more step is solved, its weights are in the model."""
        part = self._after[self._steps]
        self._steps += 1
        if part is None:
            return
        self._done.append(part)
        for kept in self._kept.values():
            if kept.layer is not None and kept.x is not None:
                with torch.no_grad():
                    kept.hidden = kept.layer(kept.x)
                kept.layer = kept.x = None
        self._inputs_bytes = 0

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Inside, finished modules are played back for the batches that are known, and watched for the others."""
        coming = self._after[self._steps] if self._steps < len(self._after) else None
        parts = [*self._done, *([coming] if coming is not None else [])]
        modules = {part: self._model.get_submodule(part) for part in parts}
        hooks = []
        if coming is not None:
            for inner in modules[coming].modules():
                if not any(True for _ in inner.children()) and any(True for _ in inner.parameters()):
                    hooks.append(inner.register_forward_hook(self._called, with_kwargs=True))
        for part, module in modules.items():
            module.__dict__["forward"] = self._forward_of(part, module.forward, part == coming)
        try:
            yield
        finally:
            self._calls.clear()
            for module in modules.values():
                module.__dict__.pop("forward", None)
            for hook in hooks:
                hook.remove()

    def _called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(output, Tensor) and len(args) == 1 and not kwargs:
            self._calls[id(output)] = (output, module, args[0])

    def _forward_of(self, part: str, real: Callable[..., Any], coming: bool) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.batch is None:
                return real(*args, **kwargs)
            key = (part, self.batch)
            if not coming and key in self._kept:
                kept = self._kept[key]
                assert kept.hidden is not None
                # a copy: what reads it may add to it in place
                return fill_output(kept.hidden.clone(), kept.slots, args, kwargs, kept.stored)
            self._calls.clear()
            output = real(*args, **kwargs)
            hidden, (slots, stored) = split_output(output, args, kwargs)
            found = self._calls.get(id(hidden)) if coming else None
            if found is not None and self._inputs_bytes + found[2].nbytes <= KEEP_BYTES:
                self._inputs_bytes += found[2].nbytes
                self._kept[key] = _Played(None, slots, stored, *found[1:])
            elif not coming and self._steps < len(self._after):  # else nobody asks again
                self._kept[key] = _Played(hidden.clone(), slots, stored)
            self._calls.clear()
            return output

        return forward


def parts_after(block: BlockRef, steps: tuple[BlockRef, ...]) -> list[str | None]:
    """For each step the module that is finished by it: the innermost around the layers solved since the last one, when
    it holds no layer of a later step. None where there is no such module inside the block."""
    found: list[str | None] = []
    open_layers: list[LayerRef] = []
    for number, step in enumerate(steps):
        open_layers += step.layers
        later = [layer.name for after in steps[number + 1 :] for layer in after.layers]
        part = _around(block, [layer.name for layer in open_layers])
        whole = part is not None and not any(name.startswith(f"{part}.") for name in later)
        found.append(part if whole else None)
        if whole:
            open_layers = []
    return found


def _around(block: BlockRef, names: list[str]) -> str | None:
    """The innermost module path, inside `block`, that holds more than one layer and all of `names`."""
    common = names[0].split(".")[:-1]
    for name in names[1:]:
        parts = name.split(".")
        common = common[: next((n for n, (a, b) in enumerate(zip(common, parts, strict=False)) if a != b), len(common))]
    path = ".".join(common)
    return path if len(names) > 1 and path.startswith(f"{block.name}.") else None
