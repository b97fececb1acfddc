"""A topic classifier: MiniLM, every parameter tuned on BBC news.

The first 128 tokens of an article tell its topic, and cost half of what 256 do. MiniLM is small: it takes a larger
step than the default, which is BERT's.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.inputs import bbc
from benchmarks.inputs._making import minilm, tuned

SETTINGS = ("--learning-rate", "2e-4", "--epochs", "3", "--max-length", "128")


def make(folder: Path) -> Path:
    """FOLDER/bbc-topics."""
    return tuned(folder / "bbc-topics", minilm(), bbc.make(folder) / "bbc.csv", SETTINGS)
