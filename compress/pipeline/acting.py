"""Solved layers whose inputs are int8 round them while the compressed model runs, as servers will."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compress.core.errors import RecipeError
from compress.core.numerics.activation import Grid, fake_quantize
from compress.core.types import ActScheme
from compress.pipeline.solve import Solved


class Acting:
    """The rounding of inputs in one block's compressed layers, from when each is solved until the block is done."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[RemovableHandle] = []

    def begin(self, solved: Solved, activation: ActScheme | None) -> None:
        """The layer has its compressed weight: from now on its input is rounded with `activation`, if there is one."""
        if activation is not None:
            module = self._model.get_submodule(solved.layer.param.rpartition(".")[0])
            hook = rounding(solved.layer.name, activation, solved.grid)
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def end(self) -> None:
        """Inputs are left as they are again."""
        while self._handles:
            self._handles.pop().remove()


Hook = Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]


def rounding(name: str, scheme: ActScheme, grid: Grid | None) -> Hook:
    """A forward pre-hook that rounds the first argument of module `name`.

    It raises RecipeError where the grid of one text would depend on the others of its batch.
    """

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (_rounded(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: _rounded(kwargs[name])}

    def _rounded(x: Tensor) -> Tensor:
        if scheme.dynamic and x.ndim < 3:
            raise RecipeError(
                f"{name} is given the tokens of all texts as one matrix, so that a text's grid would depend on its "
                "neighbours; use --activations static"
            )
        if x.numel() == 0:
            return x
        if scheme.dynamic and scheme.strategy == "tensor":  # every text as a batch of its own
            return torch.cat([fake_quantize(text, scheme) for text in torch.split(x, 1)])
        return fake_quantize(x, scheme, grid)

    return before
