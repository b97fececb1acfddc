"""What the verdicts on calibration text rest on: distances of known kinds of text, and plans of more of it.

Distances: `compress inspect --data A --like B` on the demo model. Plans: `compress sensitivity` on FEW and on MORE
texts, twice with other texts. Halves of a run's texts say what its plan loses more than one of endless text, R. The
plan of a run loses more than that of another run of other texts, judged by the costs of the other, and that should be
the sum of both R: the one plan is off by the noise of its scores, the judge by that of its own.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
from collections.abc import Mapping
from functools import partial
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
from compress.plan.pooling import scores
from compress.plan.stability import MEAN_BITS, Stability, at_mean_bits, stability
from compress.recipe import Recipe, SensitivityRecipe

FEW, MORE, LENGTH = 16, 64, 64
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
    """A row for each size of plan and pair of runs of other texts: what halves say, and what each says of the other."""
    runs = {run: profiled(*run) for run in ((FEW, 0), (FEW, 1), (MORE, 0), (MORE, 1))}
    rows = []
    for bits, (one, other) in itertools.product(MEAN_BITS, itertools.combinations(runs, 2)):
        if one[1] == other[1]:
            continue  # of one seed: the few texts are among the more
        said = [steadiness(structure, bits, *runs[run]) for run in (one, other)]
        cost = [{(row.layer, row.scheme): row.value for row in runs[run][0]} for run in (one, other)]
        made = [planned(structure, bits, runs[run][0]) for run in (one, other)]
        lost = [[sum(by[layer, scheme] for layer, scheme in plan.items()) for plan in made] for by in cost]
        rows.append(
            {
                "texts": [one[0], other[0]],
                "mean_bits": bits,
                "said": [vars(each) for each in said],
                "expected": sum(each.regret for each in said),
                "real": (lost[0][1] / lost[0][0] + lost[1][0] / lost[1][1]) / 2 - 1,
                "differ": sum(made[0][layer] != scheme for layer, scheme in made[1].items()),
                "differ_expected": math.hypot(*(each.differ for each in said)),
            }
        )
    return rows


def planned(structure: Structure, bits: float, found: list[Sensitivity]) -> Mapping[str, str]:
    """The plan of least loss at a mean number of bits."""
    planner = at_mean_bits(bits, structure, found)
    assert planner is not None
    return planner(found)


def steadiness(structure: Structure, bits: float, found: list[Sensitivity], journal: Journal) -> Stability:
    """What halves of a run's texts say of such plans."""
    losses, said = recorded(journal)
    counts = np.array(said["counts"], np.float64)
    sums = np.array([losses.get((one.layer, one.scheme), [0.0] * len(counts)) for one in found]).T
    planner = at_mean_bits(bits, structure, found)
    assert planner is not None
    roles = {layer.name: layer.role for layer in structure.layers}
    steady = stability(found, sums, counts, [planner], 0, partial(scores, found, roles))
    assert steady is not None
    return steady


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
    for pair in ([FEW, FEW], [FEW, MORE], [MORE, MORE]):
        some = [row for row in rows if sorted(row["texts"]) == pair]
        names = ("expected", "real", "differ_expected", "differ")
        said, real, layers, differ = (float(np.mean([row[name] for row in some])) for name in names)
        what = f"plans of {pair[0]} and of {pair[1]} other texts"
        lines.append(line(f"{what}: what the one loses more by the other, of its loss", round(real, 3), "stated", True))
        lines.append(line(f"{what}: the same as halves of the texts say, over that", round(said / real, 2),
                          "0.5 to 2", 0.5 <= said / real <= 2))  # fmt: skip
        lines.append(line(f"{what}: layers of other bits, as halves say ({layers:.0f})", round(differ), "stated", True))
    return {"lines": lines, "distances": apart, "plans": rows, "bounds": {"near": NEAR, "far": FAR}}
