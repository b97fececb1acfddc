"""AWQ in one block: columns that loud inputs read made larger, those that stand out smaller, by what the layers'
outputs lose to the very method that will round them (compress.core.numerics.awq).

Differs from the paper: a candidate's loss is tr(E H E^T) of the layers that read it, from second moments collected
once, not of the attention or FFN around them; so no pass is made for what is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.core.numerics.awq import ALPHAS, BETAS, column_scale
from compress.core.types import BlockRef, LayerRef, LayerStats, Plan
from compress.pipeline.collect import MakeCollector, collecting
from compress.pipeline.folding import Candidate, Folding
from compress.pipeline.replay import Replay, Trace, text_mask
from compress.pipeline.solve import Job, solve

PATIENCE = 2  # alphas in a row that are no better, before no more are tried
ROWS = 64
"""Of each layer, which candidates are judged by: rows are solved apart from each other."""


@dataclass(frozen=True)
class Wanted:
    """everywhere: whatever method a layer has; else only inputs of layers whose method is awq. values: of attention's
    output too; not where they are rotated afterwards. dtype: of stored norms."""

    everywhere: bool
    values: bool
    dtype: torch.dtype


class Awq:
    """Scales the inputs of a block's layers before they are solved. Memory: the second moments of all of its inputs."""

    def __init__(self, model: nn.Module, plan: Plan, make: MakeCollector, wanted: Wanted) -> None:
        self._model, self._plan, self._make, self._wanted = model, plan, make, wanted

    @torch.no_grad()
    def change(self, block: BlockRef, replay: Replay, traces: Sequence[Trace]) -> list[tuple[Candidate, Tensor]]:
        """Change the block's weights in place; what was scaled, and by what (C,), in that order."""
        folding = Folding(self._model, block)
        candidates = [c for c in folding.candidates(replay, traces[0]) if self._takes(c)]
        with collecting(self._model, block, self._make) as gathered:
            for trace in traces:
                gathered.mask = text_mask(trace)
                replay.visit(trace, block.index)
        gathered.inputs()
        done: list[tuple[Candidate, Tensor]] = []
        for candidate in candidates:
            scale = self._best(folding, candidate, gathered.take(candidate.layers[0]))
            if scale is not None:
                folding.scale(candidate, scale)
                done.append((candidate, scale))
        return done

    def _takes(self, candidate: Candidate) -> bool:
        return any(map(self._rounded, candidate.layers)) and (candidate.heads is None or self._wanted.values)

    def _rounded(self, layer: LayerRef) -> bool:
        plan = self._plan.layers[layer.name]
        return plan.scheme.kind != "dense" and (self._wanted.everywhere or plan.method == "awq")

    def _best(self, folding: Folding, candidate: Candidate, stats: LayerStats) -> Tensor | None:
        """The scale (C,) of least loss; None where none is less than without."""
        if not stats.n_tokens:
            return None
        layers = [layer for layer in candidate.layers if self._rounded(layer)]
        every = {layer.name: folding.weight(layer).float() for layer in layers}
        energy = candidate.of_source(stats.hessian.diagonal()).mean(0)
        size = candidate.of_source(torch.cat([weight.square() for weight in every.values()]).mean(0)).mean(0)
        some = {name: weight[:: max(1, len(weight) // ROWS)] for name, weight in every.items()}
        share = {name: float(((weight @ stats.hessian) * weight).sum()) for name, weight in some.items()}

        def loss(scale: Tensor) -> float:
            columns = candidate.of_layers(scale)
            moved = LayerStats(stats.n_tokens, stats.hessian / columns / columns.unsqueeze(1))
            return self._loss(layers, {name: weight * columns for name, weight in some.items()}, share, moved)

        least, found, beta = loss(torch.ones_like(energy)), None, 0.0
        for tried in BETAS:
            scale = self._stored(folding, candidate, column_scale(energy, size, 0.0, tried))
            if (lost := loss(scale)) < least:
                least, found, beta = lost, scale, tried
        worse = 0
        for alpha in ALPHAS:
            scale = self._stored(folding, candidate, column_scale(energy, size, alpha, beta))
            if (lost := loss(scale)) < least:
                least, found, worse = lost, scale, 0
            elif (worse := worse + 1) == PATIENCE:
                break
        return found

    def _stored(self, folding: Folding, candidate: Candidate, scale: Tensor) -> Tensor:
        """`scale` moved so little that a norm's gain divided by it is a number of the dtype that it is stored in."""
        gain = folding.model.get_submodule(candidate.source).get_parameter("weight").data.float()
        if gain.ndim != 1:
            return scale
        moved = gain / (gain / scale).to(self._wanted.dtype).float()
        return torch.where(torch.isfinite(moved) & (moved > 0), moved, scale)

    def _loss(
        self, layers: list[LayerRef], weights: dict[str, Tensor], share: dict[str, float], stats: LayerStats
    ) -> float:
        """Sum of tr(E H E^T) over the layers, rounded as planned."""
        parts = {la.name: replace(la, shape=(len(weights[la.name]), la.shape[1])) for la in layers}
        jobs = [Job(parts[la.name], self._plan.layers[la.name], weights[la.name], stats, 0) for la in layers]
        return sum(item.result.output_error * share[item.layer.name] for item in solve(jobs))
