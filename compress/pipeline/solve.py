"""From a block's weights and statistics to codes: picks the method, stacks what shares an input, measures the error."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.core.device import one_thread
from compress.core.errors import CompressError, DataError
from compress.core.numerics.activation import Grid, static_grid
from compress.core.numerics.affine import dequantize
from compress.core.numerics.correct import corrected
from compress.core.numerics.error import output_error, weight_error
from compress.core.numerics.observers import OBSERVERS
from compress.core.registry import load
from compress.core.types import LayerPlan, LayerRef, LayerResult, LayerStats, QTensor


@dataclass(frozen=True)
class Solved:
    """One layer's codes, and the row of the report that belongs to them. grid: of its input, where that is static."""

    layer: LayerRef
    q: QTensor
    result: LayerResult
    grid: Grid | None = None


@dataclass(frozen=True)
class Job:
    """One layer to be solved. weight: (O, I) float32. stats: of its input, or None.

    bytes_before: on disk. dense_bits: of a weight that the format cannot pack.
    """

    layer: LayerRef
    plan: LayerPlan
    weight: Tensor
    stats: LayerStats | None
    bytes_before: int
    dense_bits: int = 16


def solve(jobs: Iterable[Job]) -> list[Solved]:
    """Solve layers that share one input and one plan as one tall matrix: one factorisation instead of three.

    Rows are independent in every LayerMethod (the conformance suite holds them to it), so the codes are the same.
    """
    return [item for group in _stacks(list(jobs)) for item in _solve_stack(group)]


def kept_row(layer: LayerRef, plan: LayerPlan, before: int, after: int) -> LayerResult:
    """The row of a layer that is kept as it is; before, after: bytes of one weight."""
    count, none = layer.shape[0] * layer.shape[1], float("nan")
    sizes = (before * count, after * count, none, none, 0.0)
    return LayerResult(layer.name, layer.block, layer.role, layer.shape, plan.scheme.name, "keep", plan.reason, *sizes)


def _solve_stack(group: list[Job]) -> list[Solved]:
    started = time.perf_counter()
    plan = group[0].plan
    with _naming(plan.layer):
        targets = [corrected(job.weight, job.stats) if job.stats is not None else job.weight for job in group]
        weight = torch.cat(targets) if len(group) > 1 else targets[0]
        method = load("method", plan.method)
        with one_thread():
            q, fallback = method.quantize(weight, group[0].stats, plan.scheme, method.options(**plan.options))
    seconds = (time.perf_counter() - started) / len(group)
    parts = split_rows(q, [job.layer.shape[0] for job in group])
    return [_judge(*each, fallback, seconds) for each in zip(group, targets, parts, strict=True)]


def _stacks(jobs: list[Job]) -> list[list[Job]]:
    groups: dict[tuple[object, ...], list[Job]] = {}
    for job in jobs:
        shared = id(job.stats.hessian) if job.stats is not None else job.layer.name
        key = (shared, job.plan.scheme, job.plan.method, str(sorted(job.plan.options.items())))
        groups.setdefault(key, []).append(job)
    return list(groups.values())


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    """Inside, an error says which layer it is about."""
    try:
        yield
    except CompressError as error:
        raise type(error)(f"{layer}: {error}") from None


def split_rows(q: QTensor, rows: list[int]) -> list[QTensor]:
    """Cut a quantized matrix into pieces of `rows` rows each."""
    codes, scales = torch.split(q.codes, rows), torch.split(q.scale, rows)
    zeros, minima = (torch.split(t, rows) if t is not None else [None] * len(rows) for t in (q.zero, q.minimum))
    return [
        QTensor(c.contiguous(), s.contiguous(), _whole(z), q.scheme, _whole(m))
        for c, s, z, m in zip(codes, scales, zeros, minima, strict=True)
    ]


def _whole(part: Tensor | None) -> Tensor | None:
    return None if part is None else part.contiguous()


def _judge(job: Job, target: Tensor, q: QTensor, fallback: str | None, seconds: float) -> Solved:
    weight = dequantize(q)
    hessian = job.stats.hessian if job.stats is not None and job.stats.n_tokens else None
    rows, columns = job.layer.shape
    bits = q.scheme.bits_per_weight(job.layer.shape) if job.plan.packed else job.dense_bits
    result = LayerResult(
        layer=job.layer.name,
        block=job.layer.block,
        role=job.layer.role,
        shape=job.layer.shape,
        scheme=q.scheme.name,
        method=job.plan.method,
        reason=job.plan.reason,
        bytes_before=job.bytes_before,
        bytes_after=round(bits * rows * columns / 8),
        output_error=output_error(target, weight, hessian),
        weight_error=weight_error(target, weight),
        seconds=seconds,
        n_tokens=job.stats.n_tokens if job.stats is not None else 0,
        moved=weight_error(job.weight, target) if target is not job.weight else 0.0,
        fallback=fallback,
        activation=job.plan.activation.name if job.plan.activation else "",
    )
    return Solved(job.layer, q, result, _grid(job))


def _grid(job: Job) -> Grid | None:
    """The static grid of the layer's input. Raises DataError where there was no text to choose it from."""
    scheme = job.plan.activation
    if scheme is None or scheme.dynamic:
        return None
    if job.stats is None or job.stats.values is None or not job.stats.n_tokens:
        raise DataError(
            f"{job.layer.name} read no calibration text, so its inputs have no range; give more --data, or use "
            "--activations dynamic"
        )
    with _naming(job.layer.name):
        return static_grid(*OBSERVERS[scheme.observer](job.stats.values, scheme), scheme)
