"""Acceptance 3 and 4: our GPTQ against rounding to nearest with MSE clipping, and against classic GPTQ.

Demo model (SmolLM2-135M-Instruct, norms folded), g64 asymmetric, 64 x 512 calibration tokens and 16 held-out
documents of BBC news, KL to the original in nats a token, judged in the same streaming pass. Two runs at a time, one
thread each: timings in here are not for quoting.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from benchmarks.shared import RUNS, bbc, line
from compress.pipeline.quantize import quantize
from compress.recipe import Recipe

METHODS: dict[str, dict[str, Any]] = {
    "rtn + MSE clip": {"method": "rtn"},
    "gptq classic": {"method": "gptq", "options": {"classic": True}},
    "gptq": {"method": "gptq"},
}


def measure(method: str, bits: int) -> dict[str, Any]:
    """Perplexity, ratio, KL and agreement with intervals for one method."""
    out = RUNS / f"quality-{list(METHODS).index(method)}-{bits}"
    shutil.rmtree(out, ignore_errors=True)
    recipe = Recipe.build(
        out=str(out),
        data=str(bbc()),
        threads=1,
        bits=bits,
        group_size=64,
        symmetric=False,
        eval_samples=16,
        generate=0,
        verify=False,
        **METHODS[method],
    )
    record = quantize(recipe)
    found: dict[str, Any] = {"source": "BBC news", "method": method, "bits": bits}
    for m in record.measurements:
        if m.name in ("perplexity", "perplexity_ratio", "kl", "top1_agreement"):
            name = f"original_{m.name}" if m.subject == "original" else m.name
            found[name] = {"median": m.median, "low": m.low, "high": m.high, "n": m.n}
    found["seconds"] = {name: round(value, 1) for name, value in record.stages.items()}
    shutil.rmtree(out)
    print(f"   {bits} bit, {method}: KL {found['kl']['median']:.4f}", flush=True)
    return found


def run() -> dict[str, Any]:
    """All methods and bits; the longest runs first."""
    jobs = [(method, bits) for method in reversed(METHODS) for bits in (4, 3)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        rows = list(pool.map(measure, *zip(*jobs, strict=True)))
    kl = {(r["method"], r["bits"]): r["kl"]["median"] for r in rows}
    lines = []
    for bits, rtn_bound, classic_bound in ((4, 0.30, 0.60), (3, 0.30, 0.50)):
        for against, bound in (("rtn + MSE clip", rtn_bound), ("gptq classic", classic_bound)):
            ratio = kl["gptq", bits] / kl[against, bits]
            lines.append(
                line(f"KL(gptq) / KL({against}), {bits} bit", round(ratio, 3), f"<= {bound:.2f}", ratio <= bound)
            )
    return {"lines": lines, "rows": rows}
