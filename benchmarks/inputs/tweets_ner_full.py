"""A tagger of names in tweets: MiniLM, every parameter tuned. Step size and epochs chosen by the validation tweets."""

from __future__ import annotations

from pathlib import Path

from benchmarks.inputs import tweets
from benchmarks.inputs._making import minilm, tuned

SETTINGS = ("--learning-rate", "3e-4", "--epochs", "6", "--patience", "0", "--max-length", "128")


def make(folder: Path) -> Path:
    """FOLDER/tweets-ner-full."""
    return tuned(folder / "tweets-ner-full", minilm(), tweets.make(folder), SETTINGS)
