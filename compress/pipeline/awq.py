"""AWQ in one block: columns that loud inputs read made larger, by what the layers' outputs lose to the very method that
will round them (compress.core.numerics.awq).

Differs from the paper: a candidate's loss is tr(E H E^T) of the layers that read it, from second moments collected
once, not of the attention or FFN around them; so no pass is made for what is tried.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.core.numerics.awq import ALPHAS, activation_scale
from compress.core.types import BlockRef, LayerRef, LayerStats, Plan
from compress.pipeline.collect import MakeCollector, collecting
from compress.pipeline.folding import Candidate, Folding
from compress.pipeline.replay import Replay, Trace, text_mask
from compress.pipeline.solve import Job, solve

PATIENCE = 2  # alphas in a row that are no better, before no more are tried


class Awq:
    """Scales the inputs of a block's layers before they are solved. Memory: the second moments of all of its inputs.

    everywhere: whatever method a layer has; else only inputs of layers whose method is awq. dtype: of stored norms.
    """

    name = "awq"

    def __init__(self, model: nn.Module, plan: Plan, make: MakeCollector, everywhere: bool, dtype: torch.dtype) -> None:
        self._model, self._plan, self._make, self._everywhere, self._dtype = model, plan, make, everywhere, dtype

    @torch.no_grad()
    def change(self, block: BlockRef, replay: Replay, traces: Sequence[Trace]) -> list[str]:
        """Change the block's weights in place; names of the layers whose inputs are scaled now."""
        folding = Folding(self._model, block)
        candidates = [c for c in folding.candidates(replay, traces[0]) if any(map(self._rounded, c.layers))]
        with collecting(self._model, block, self._make) as gathered:
            for trace in traces:
                gathered.mask = text_mask(trace)
                replay.visit(trace, block.index)
        gathered.inputs()
        done: list[str] = []
        for candidate in candidates:
            scale = self._best(folding, candidate, gathered.take(candidate.layers[0]))
            if scale is not None:
                folding.scale(candidate, scale)
                done += [layer.name for layer in candidate.layers]
        return done

    def _rounded(self, layer: LayerRef) -> bool:
        plan = self._plan.layers[layer.name]
        return plan.scheme.kind != "dense" and (self._everywhere or plan.method == "awq")

    def _best(self, folding: Folding, candidate: Candidate, stats: LayerStats) -> Tensor | None:
        """The scale (C,) of least loss; None where none is less than without."""
        if not stats.n_tokens:
            return None
        energy = candidate.of_source(stats.hessian.diagonal()).mean(0)
        weights = {layer.name: folding.weight(layer).float() for layer in candidate.layers if self._rounded(layer)}
        layers = [layer for layer in candidate.layers if layer.name in weights]
        share = {la.name: float(((weights[la.name] @ stats.hessian) * weights[la.name]).sum()) for la in layers}
        best, found, worse = self._loss(layers, weights, share, stats), None, 0
        for alpha in ALPHAS:
            scale = self._stored(folding, candidate, activation_scale(energy, alpha))
            columns = candidate.of_layers(scale)
            moved = LayerStats(stats.n_tokens, stats.hessian / columns / columns.unsqueeze(1))
            loss = self._loss(layers, {n: w * columns for n, w in weights.items()}, share, moved)
            if loss < best:
                best, found, worse = loss, scale, 0
            elif (worse := worse + 1) == PATIENCE:
                break
        return found

    def _stored(self, folding: Folding, candidate: Candidate, scale: Tensor) -> Tensor:
        """`scale` moved so little that a norm's gain divided by it is a number of the dtype that it is stored in."""
        gain = folding.model.get_submodule(candidate.source).get_parameter("weight").data.float()
        if gain.ndim != 1:
            return scale
        moved = gain / (gain / scale).to(self._dtype).float()
        return torch.where(torch.isfinite(moved) & (moved > 0), moved, scale)

    def _loss(
        self, layers: list[LayerRef], weights: dict[str, Tensor], share: dict[str, float], stats: LayerStats
    ) -> float:
        """Sum of tr(E H E^T) over the layers, rounded as planned."""
        jobs = [Job(la, self._plan.layers[la.name], weights[la.name], stats, 0) for la in layers]
        return sum(item.result.output_error * share[item.layer.name] for item in solve(jobs))
