"""A hessian made fit to be factorised: scaled, shrunk where tokens are few, damped until it is positive definite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compress.core.errors import HessianError
from compress.core.types import LayerStats

MOST_DAMP = 10.0


def require_hessian(hessian: Tensor, in_features: int) -> None:
    """Raises HessianError unless `hessian` is (in_features, in_features) and finite."""
    if hessian.shape != (in_features, in_features):
        raise HessianError(
            f"a hessian of shape {tuple(hessian.shape)} does not fit {in_features} inputs; "
            "collect it from this layer's own input"
        )
    finite = torch.isfinite(hessian)
    if not bool(finite.all()):
        raise HessianError(
            f"the hessian holds {int((~finite).sum())} values that are not finite; "
            "calibrate in float32 and look for inf or nan in the block's activations"
        )


def trust(stats: LayerStats, shrinkage: float) -> float:
    """n / (n + shrinkage * I) for n tokens of I inputs: how far second moments of so few are believed, 0 to 1."""
    return stats.n_tokens / (stats.n_tokens + shrinkage * stats.hessian.shape[0])


def shrunk(stats: LayerStats, shrinkage: float) -> tuple[Tensor, float]:
    """`(hessian (I, I) over its mean diagonal, the mean)`, a new tensor; zeros and 0.0 when every input was 0.

    The off-diagonal is scaled by `trust`: what a small sample says about two inputs together is mostly noise. An input
    that was always 0 costs nothing: a 1 on its diagonal keeps the factor finite and leaves its column alone.
    """
    mean = float(stats.hessian.diagonal().double().mean())
    believed = trust(stats, shrinkage)
    scaled = stats.hessian * (believed / mean) if mean > 0 else torch.zeros_like(stats.hessian)
    scaled.diagonal().div_(believed)
    scaled.diagonal().add_((scaled.diagonal() == 0).to(scaled.dtype))
    return scaled, max(mean, 0.0)


def damped(scaled: Tensor, damp: float, factor: Callable[[Tensor], Tensor | None]) -> tuple[Tensor, float]:
    """`(factor(scaled + damp), damp)`; where there is no factor, ten times the damping is tried, up to MOST_DAMP.

    scaled: (I, I), changed in place to what was factorised. Raises HessianError when nothing helps.
    """
    added = 0.0
    while True:
        scaled.diagonal().add_(damp - added)
        added = damp
        found = factor(scaled)
        if found is not None:
            return found, damp
        if damp >= MOST_DAMP:
            raise HessianError(
                f"the hessian is indefinite even with {damp:g} times its mean diagonal added; "
                "collect it from more tokens, in float32"
            )
        damp = min(damp * 10 if damp > 0 else 0.01, MOST_DAMP)
