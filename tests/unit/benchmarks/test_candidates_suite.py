"""The candidates' suite: its options are understood, and its ratios are right."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import candidates
from compress.core.registry import load
from compress.pipeline.inputs import method_options
from compress.recipe import Recipe


@pytest.mark.parametrize("name", candidates.CANDIDATES)
def test_options_of_candidates_are_understood(name: str) -> None:
    words = candidates.CANDIDATES[name]
    pairs = list(zip(words[::2], words[1::2], strict=True))
    options = dict(value.split("=") for flag, value in pairs if flag == "--option")
    settings: dict[str, Any] = {flag[2:]: value for flag, value in pairs if flag != "--option"}
    recipe = Recipe.build(**settings, options=options)
    assert set(method_options(load("method", recipe.method), recipe)) == set(options)


def test_ratios_are_geometric_means_over_what_was_measured() -> None:
    def cell(subject: str, candidate: str, kl: float) -> dict[str, Any]:
        return {"subject": subject, "bits": 3, "candidate": candidate, "kl": {"median": kl}}

    cells = [
        cell("demo", "gptq", 0.5),
        cell("topics", "gptq", 0.02),
        cell("demo", "rtn", 2.0),
        cell("tweets", "rtn", 1.0),
    ]
    assert [row["value"] for row in candidates.rows_of(cells)] == ["4.00 (demo 4.00)"]
    cells.append(cell("topics", "rtn", 0.02))
    (row,) = candidates.rows_of(cells)
    assert (row["what"], row["value"]) == ("rtn, 3 bits: KL over gptq's", "2.00 (topics 1.00, demo 4.00)")
