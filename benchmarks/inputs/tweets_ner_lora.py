"""A tagger of names in tweets: LoRA on MiniLM.

Rank and step size are twice the product's defaults and more, for 1,616 tweets teach ten types little in three epochs;
chosen by the validation tweets.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.inputs import tweets
from benchmarks.inputs._making import minilm, tuned

SETTINGS = ("--method", "lora", "--option", "rank=32", "--option", "alpha=64", "--learning-rate", "1e-3",
            "--epochs", "10", "--patience", "0", "--max-length", "128")  # fmt: skip


def make(folder: Path) -> Path:
    """FOLDER/tweets-ner-lora: the merged model, and the adapter beside it."""
    return tuned(folder / "tweets-ner-lora", minilm(), tweets.make(folder), SETTINGS)
