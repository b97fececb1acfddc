"""A search over BBC news: the headline is the query, the article without it is the passage to be found.

Of the stories of bbc.py, divided by story with a fixed seed: `test` is what is searched, and judged; `train` is there
to calibrate with, and nothing is trained. The embedder is MiniLM as it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.inputs._making import once
from benchmarks.inputs.bbc import articles, write_csv

SEED, JUDGED = 0, 1000


def make(folder: Path) -> Path:
    """FOLDER/bbc-retrieval/{train,test}.csv: id, query, passage."""
    return once(folder / "bbc-retrieval", _write)


def _write(folder: Path) -> None:
    found = list(articles())
    order = np.random.default_rng(SEED).permutation(len(found)).tolist()
    for name, numbers in (("test", order[:JUDGED]), ("train", order[JUDGED:])):
        rows = ((found[n].id, found[n].headline, found[n].body) for n in sorted(numbers))
        write_csv(folder / f"{name}.csv", ("id", "query", "passage"), rows)
