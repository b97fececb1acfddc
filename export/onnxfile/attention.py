"""Attention as one operator of onnxruntime, which never writes a matrix of all positions by all positions.

What transformers' eager attention makes of a text is, node by node, scores (B, N, S, S), their scale, the mask added,
a softmax and a product: five passes over a matrix that no cache holds. com.microsoft MultiHeadAttention goes over it
in blocks (Dao et al. 2022), but on CPUs only where no mask is given. So the mask of keys is a feature more of each
head: queries hold a one there, keys 0 or a very negative number, and their product is the score with the mask added.
The numbers are the same up to the order of sums. Where attention is anything else than softmax(q k^T s + mask) v,
or the mask is not one of keys, the model's own nodes stay.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HIDDEN = -1e30
"""Score of a key that is not read: a sum with it is it, whatever the query, and no scale makes it infinite."""

IMPLEMENTATION, FUNCTION = "eager", "eager_attention_forward"
Attention = Callable[..., tuple[Tensor, Any]]


class _Fused:
    """What is known while one graph is traced. usual: attention functions that are the formula, with the class of the
    module they were tried with. keys: of the id of a mask, it (so that it stays) and where its keys are read (B, T)."""

    def __init__(self, model: nn.Module) -> None:
        self.keys: dict[int, tuple[Tensor, Tensor]] = {}
        self.usual = set(_usual(model))

    def mask(self, made: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
        """`made`, remembering which keys its masks show when every query sees the same ones."""
        from transformers.masking_utils import bidirectional_mask_function

        def make(*args: Any, **given: Any) -> Tensor | None:
            mask, keys = made(*args, **given), given.get("attention_mask")
            alike = given.get("mask_function") is bidirectional_mask_function
            if mask is not None and alike and isinstance(keys, Tensor) and keys.dim() == 2:
                self.keys[id(mask)] = (mask, keys.to(torch.bool))
            return mask

        return make

    def attention(self, own: Attention) -> Attention:
        """`own`, as one operator where that is the same."""

        def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **given: Any) -> Any:
            scale = given.get("scaling")
            scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
            hidden = self._hidden(mask, scale)
            alike = (own, type(module)) in self.usual and not _told_more(own, given) and k.shape[1] == q.shape[1]
            if not alike or (mask is not None and hidden is None):
                return own(module, q, k, v, mask, **given)
            return _operator(q, k, v, hidden, scale), None

        return attend

    def _hidden(self, mask: Tensor | None, scale: float) -> Tensor | None:
        """What is added to the product of any query with each key (B, T), over `scale`; None: the mask is no such."""
        if mask is None:
            return None
        if id(mask) in self.keys:
            shown = self.keys[id(mask)][1]
            return torch.where(shown, 0.0, HIDDEN)
        if mask.dim() == 4 and mask.shape[1] == 1 and mask.shape[2] == 1 and mask.is_floating_point():
            return mask[:, 0, 0].clamp(min=HIDDEN * scale) / scale
        return None


def _usual(model: nn.Module) -> Iterator[tuple[Attention, type]]:
    """The eager attention functions of the model's code that compute softmax(q k^T s + mask) v, with the class of the
    module that is handed to them: by a trial on small random inputs, so that no name decides."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (3 * torch.randn(2, 3, 5, 4, generator=draw) for _ in range(3))
    mask = torch.zeros(2, 1, 5, 5)
    mask[1, :, :, 3:] = torch.finfo(torch.float32).min
    wanted = (torch.softmax(q @ k.transpose(2, 3) * 0.7 + mask, -1) @ v).transpose(1, 2)
    for kind, module in {type(module): module for module in model.modules()}.items():
        own: Attention | None = getattr(sys.modules.get(kind.__module__), FUNCTION, None)
        if own is None:
            continue
        try:
            found = own(module, q, k, v, mask, scaling=0.7, dropout=0.0)[0]
        except (RuntimeError, TypeError, ValueError, AttributeError):  # it wants more than the formula has
            continue
        if found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-5):
            yield own, kind


def _told_more(own: Attention, given: dict[str, Any]) -> bool:
    """Whether `own` is given something that it takes by name and the formula has not."""
    takes = set(inspect.signature(own).parameters) - {"scaling", "dropout"}
    return any(name in takes and value is not None for name, value in given.items())


def _operator(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
    """q (B, N, S, H), k (B, N, T, H), v (B, N, T, V), hidden (B, T) as keys' feature: (B, S, N, V)."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    heads = q.shape[2]
    if hidden is not None:
        q = torch.cat([q, torch.ones_like(q[..., :1])], -1)
        k = torch.cat([k, hidden[:, :, None, None].expand(-1, -1, heads, -1)], -1)
    flat = [part.reshape(part.shape[0], part.shape[1], heads * part.shape[3]) for part in (q, k, v)]
    made: Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention", flat, attrs={"num_heads": heads, "scale": scale}, dtype=torch.float32,
        shape=[q.shape[0], q.shape[1], heads * v.shape[3]], version=1,
    )  # fmt: skip
    return made.reshape(q.shape[0], q.shape[1], heads, v.shape[3])


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Inside, eager attention of `model` is traced as one operator where that is the same."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS
    from transformers.modeling_utils import AttentionInterface

    state, plain = _Fused(model), AttentionInterface.get_interface

    def get_interface(self: Any, name: str, default: Attention) -> Attention:
        found: Attention = plain(self, name, default)
        return state.attention(found) if name == IMPLEMENTATION and found is default else found

    MASKS[IMPLEMENTATION] = state.mask(MASKS[IMPLEMENTATION])
    AttentionInterface.get_interface = get_interface
    try:
        yield
    finally:
        AttentionInterface.get_interface = plain
        del MASKS[IMPLEMENTATION]
