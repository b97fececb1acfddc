"""What the verdicts on calibration text rest on: distances of known kinds of text, and plans of more of it.

Distances: `compress inspect --data A --like B` on the demo model. Plans: `compress sensitivity` on FEW and on MORE
texts, twice with other texts, and on MANY, which judges. Halves of the few say what their plan loses more than one of
endless text; that is held to what it loses more than the plan of the many, by the costs of the many.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inputs._making import INPUTS
from benchmarks.shared import RUNS, line
from compress.core.blocks import find_structure
from compress.core.checkpoint import Checkpoint
from compress.core.journal import JOURNAL, Journal
from compress.core.opening import resolve
from compress.core.types import Sensitivity, Structure
from compress.pipeline.inspect import inspect_text
from compress.pipeline.profiling import recorded
from compress.pipeline.sensitivity import sensitivity
from compress.plan import profile
from compress.plan.stability import MEAN_BITS, at_mean_bits, stability
from compress.recipe import Recipe, SensitivityRecipe

FEW, MORE, MANY, LENGTH = 16, 64, 256, 64
NEAR, FAR = 0.15, 0.35


def texts() -> dict[str, list[str]]:
    """Texts of known kinds: two halves of the articles, their sections, tweets."""
    csv.field_size_limit(1 << 30)
    with (INPUTS / "bbc" / "bbc.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    half = len(rows) // 2
    found = {"articles": [row["text"] for row in rows[:half]], "other articles": [row["text"] for row in rows[half:]]}
    for name in sorted({row["label"] for row in rows}):
        found[name] = [row["text"] for row in rows[half:] if row["label"] == name]
    blocks = (INPUTS / "tweets" / "train.conll").read_text(encoding="utf-8").strip().split("\n\n")
    found["tweets"] = [" ".join(row.split("\t")[0] for row in block.splitlines()) for block in blocks]
    return found


def distances() -> list[dict[str, Any]]:
    """A row for each pair of sources: what the figures and the verdict are."""
    folder = RUNS / "calibration-texts"
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path | None] = {"python's reference": None}
    for name, found in texts().items():
        paths[name] = folder / f"{name.replace(' ', '-')}.jsonl"
        lines = (json.dumps({"text": text}) + "\n" for text in found)
        (folder / f"{name.replace(' ', '-')}.jsonl").write_text("".join(lines), encoding="utf-8")
    others = [name for name in paths if name not in ("articles", "python's reference")]
    pairs = [("articles", name) for name in others]
    sections = [name for name in others if name not in ("other articles", "tweets")]
    pairs += [(sections[0], name) for name in sections[1:]] + [("python's reference", "other articles")]
    rows = []
    for data, like in pairs:
        recipe = Recipe.build(data=paths[data] and str(paths[data]), like=str(paths[like]))
        found = inspect_text(recipe, lambda _: None).data["fit"]["text"]
        kept = {name: found[name] for name in ("like_covered", "like_reached", "like_shared", "distance")}
        rows.append({"data": data, "like": like, **kept})
    return rows


def profiled(samples: int, seed: int) -> tuple[list[Sensitivity], Journal]:
    """Costs of a run, and its journal."""
    out = RUNS / f"calibration-{samples}-{seed}"
    data = str(INPUTS / "bbc" / "bbc.csv")
    sensitivity(SensitivityRecipe.build(out=str(out), data=data, samples=samples, seq_len=LENGTH, seed=seed, threads=1))
    lines = [json.loads(row) for row in (out / JOURNAL).read_text(encoding="utf-8").splitlines()]
    return list(profile.read(out / profile.PLACE).sensitivities), Journal(out, lines)


def plans(structure: Structure) -> list[dict[str, Any]]:
    """A row for each run and size of plan: what halves say, and what the many texts say of it."""
    judge, _ = profiled(MANY, 2)
    cost = {(one.layer, one.scheme): one.value for one in judge}
    rows = []
    for samples, seed in ((FEW, 0), (FEW, 1), (MORE, 0), (MORE, 1)):
        found, journal = profiled(samples, seed)
        losses, said = recorded(journal)
        counts = np.array(said["counts"], np.float64)
        sums = np.array([losses.get((one.layer, one.scheme), [0.0] * len(counts)) for one in found]).T
        for bits in MEAN_BITS:
            by_few, by_many = (at_mean_bits(bits, structure, costs) for costs in (found, judge))
            assert by_few is not None
            assert by_many is not None
            steady = stability(found, sums, counts, [by_few], 0)
            assert steady is not None
            chosen, best = by_few(found), by_many(judge)
            lost, least = (sum(cost[layer, scheme] for layer, scheme in plan.items()) for plan in (chosen, best))
            differ = sum(best[layer] != scheme for layer, scheme in chosen.items())
            rows.append({"texts": samples, "seed": seed, "mean_bits": bits, **vars(steady), "real": lost / least - 1,
                         "differ_from_many": differ, "saved_by_128": steady.saved(samples, 128)})  # fmt: skip
    return rows


def run() -> dict[str, Any]:
    """The distances, then the plans."""
    apart = distances()
    lines = []
    for row in apart:
        found = row["distance"]
        what = f"distance of {row['data']} to {row['like']} beyond that of halves (halves {found['own']:.2f})"
        lines.append(line(what, round(found["excess"], 3), "stated", True))
    same = next(row["distance"]["excess"] for row in apart if row["like"] == "other articles")
    other = min(row["distance"]["excess"] for row in apart if "tweets" in row["like"] or "python" in row["data"])
    lines.append(line("the same kind of text", round(same, 3), f"< {NEAR}", same < NEAR))
    lines.append(line("another kind of text, the least", round(other, 3), f">= {FAR}", other >= FAR))
    checkpoint = Checkpoint(resolve("demo", False, str).folder, False)
    rows = plans(find_structure(checkpoint.model, checkpoint.config))
    for texts_used in (FEW, MORE):
        some = [row for row in rows if row["texts"] == texts_used]
        said, real = (float(np.mean([row[name] for row in some])) for name in ("regret", "real"))
        lines.append(line(f"plans of {texts_used} texts lose more than one of endless text, as halves say",
                          round(said, 3), "stated", True))  # fmt: skip
        ratio = said / real
        lines.append(line(f"the same, over what they lose more than the plan of {MANY} texts, by those",
                          round(ratio, 2), "0.5 to 2", 0.5 <= ratio <= 2))  # fmt: skip
    return {"lines": lines, "distances": apart, "plans": rows, "bounds": {"near": NEAR, "far": FAR}}
