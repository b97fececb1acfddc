"""Solved layers whose inputs are int8 round them while the compressed model runs, as servers will."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

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
            hook = rounding(activation, solved.grid)
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def end(self) -> None:
        """Inputs are left as they are again."""
        while self._handles:
            self._handles.pop().remove()


def rounding(scheme: ActScheme, grid: Grid | None) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """A forward pre-hook that rounds a module's first argument."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (_rounded(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: _rounded(kwargs[name])}

    def _rounded(x: Tensor) -> Tensor:
        return fake_quantize(x, scheme, grid) if x.numel() else x

    return before
